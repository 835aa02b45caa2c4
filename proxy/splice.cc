#include "proxy/splice.h"

#include <simdjson.h>

#include <algorithm>

namespace kvferry::proxy {
namespace {

// Larger texts get a parser of their own: its buffers are about five times the text and would stay.
constexpr size_t kKeptParserBytes = 8 << 20;
// Of a spliced text: what lies between the members that are taken out.
constexpr size_t kUsualPieces = 4;

std::string_view trimmed(std::string_view text) {
  const size_t end = text.find_last_not_of(" \t\r\n");
  return text.substr(0, end == std::string_view::npos ? 0 : end + 1);
}

Error not_an_object(simdjson::error_code error) {
  return {ErrorCode::invalid_argument, "the body is not a JSON object", simdjson::error_message(error), "", ""};
}

Error too_many_members() {
  return {ErrorCode::invalid_argument, "a JSON object has more than " + std::to_string(kMaxMembers) + " members"};
}

// The raw text of a value; moves the iterator behind it.
simdjson::error_code raw_value(simdjson::ondemand::value& value, std::string_view& raw) {
  simdjson::ondemand::json_type type{};
  if (const auto error = value.type().get(type)) return error;
  if (type == simdjson::ondemand::json_type::object) {
    simdjson::ondemand::object object;
    if (const auto error = value.get_object().get(object)) return error;
    return object.raw_json().get(raw);
  }
  if (type == simdjson::ondemand::json_type::array) {
    simdjson::ondemand::array array;
    if (const auto error = value.get_array().get(array)) return error;
    return array.raw_json().get(raw);
  }
  raw = value.raw_json_token();
  return simdjson::SUCCESS;
}

simdjson::error_code read_member(simdjson::ondemand::field& field, Members& members) {
  Member member;
  const char* key = field.key().raw();
  member.begin = static_cast<size_t>(key - 1 - members.text.data());
  std::string_view name;
  if (const auto error = field.unescaped_key().get(name)) return error;
  const bool plain = std::equal(name.begin(), name.end(), key) && key[name.size()] == '"';
  member.name = plain ? members.text.substr(member.begin + 1, name.size())
                      : std::string_view(members.unescaped_names.emplace_back(name));
  if (const auto error = raw_value(field.value(), member.value)) return error;
  member.value = trimmed(member.value);
  if (member.value.empty()) return simdjson::TAPE_ERROR;
  member.end = static_cast<size_t>(member.value.data() + member.value.size() - members.text.data());
  members.all.push_back(member);
  return simdjson::SUCCESS;
}

Status read_members(simdjson::ondemand::parser& parser, const std::string& text, Members& members) {
  simdjson::ondemand::document document;
  const simdjson::padded_string_view padded(text.data(), text.size(), text.capacity());
  if (const auto error = parser.iterate(padded).get(document)) return not_an_object(error);
  simdjson::ondemand::object object;
  if (const auto error = document.get_object().get(object)) return not_an_object(error);
  for (auto item : object) {
    simdjson::ondemand::field field;
    if (const auto error = std::move(item).get(field)) return not_an_object(error);
    if (members.all.size() == kMaxMembers) return too_many_members();
    if (const auto error = read_member(field, members)) return not_an_object(error);
  }
  const char* behind = nullptr;
  const bool at_the_end = document.current_location().get(behind) != simdjson::SUCCESS;  // it has no place
  return at_the_end ? Status() : not_an_object(simdjson::TAPE_ERROR);
}

void append_piece(Spliced& out, std::string_view piece) {
  if (piece.empty()) return;
  out.rest.push_back(piece);
  out.size += piece.size();
}

}  // namespace

struct Scanner::Parser {
  simdjson::ondemand::parser parser;
};

Scanner::Scanner() : parser_(std::make_unique<Parser>()) {}
Scanner::~Scanner() = default;

const Member* Members::find(std::string_view name) const {
  const auto found = std::find_if(all.rbegin(), all.rend(), [&](const Member& member) { return member.name == name; });
  return found == all.rend() ? nullptr : &*found;
}

Result<Members> Scanner::scan(const std::string& text) {
  Members members;
  members.text = text;
  members.open_brace = text.find_first_not_of(" \t\r\n");
  members.all.reserve(16);
  const bool large = text.size() > kKeptParserBytes;
  const auto own = large ? std::make_unique<Parser>() : nullptr;
  KVF_RETURN_IF_ERROR(read_members(own ? own->parser : parser_->parser, text, members));
  return members;
}

Spliced splice(const Members& members, std::span<const std::string_view> removed, std::string_view inserted) {
  Spliced out;
  const std::string_view text = members.text;
  out.front.reserve(members.open_brace + inserted.size() + 2);
  out.rest.reserve(kUsualPieces);
  out.front.assign(text.substr(0, members.open_brace + 1)).append(inserted);
  size_t from = members.open_brace + 1;  // first byte not yet passed on or dropped
  bool kept_any = false;
  size_t last_end = from;  // behind the last member seen
  for (size_t i = 0; i < members.all.size(); ++i) {
    const Member& member = members.all[i];
    const bool drop = std::find(removed.begin(), removed.end(), member.name) != removed.end();
    if (drop) {
      // Before the first kept member a dropped one takes the comma behind it along, later the one before it.
      append_piece(out, text.substr(from, (kept_any ? last_end : member.begin) - from));
      from = !kept_any && i + 1 < members.all.size() ? members.all[i + 1].begin : member.end;
    }
    kept_any = kept_any || !drop;
    last_end = member.end;
  }
  append_piece(out, text.substr(from));
  if (kept_any && !inserted.empty()) out.front.push_back(',');
  out.size += out.front.size();
  return out;
}

std::string Spliced::joined() const {
  std::string text;
  text.reserve(size + 64);
  text.append(front);
  for (const std::string_view piece : rest) text.append(piece);
  return text;
}

}  // namespace kvferry::proxy
