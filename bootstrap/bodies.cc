#include "bootstrap/bodies.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <charconv>
#include <limits>

#include "bootstrap/limits.h"
#include "common/text.h"

namespace kvferry::bootstrap {
namespace {

using simdjson::dom::element;
using simdjson::dom::object;

Error fault(std::string message) {
  return {ErrorCode::invalid_argument, std::move(message), "", "", "bootstrap"};
}

// A parsed document; views and objects live as long as it.
struct Document {
  simdjson::dom::parser parser;
  object root;

  Status parse(std::string_view body) {
    // Copies: the caller's bytes need no padding.
    const simdjson::padded_string padded(body);
    if (const auto error = parser.parse(padded).get_object().get(root)) {
      return fault(error == simdjson::INCORRECT_TYPE
                       ? "the body must be a JSON object"
                       : std::string("the body is not JSON: ") + simdjson::error_message(error));
    }
    return {};
  }
};

// One member of an object, with the error messages of a wrong one.
class Member {
 public:
  Member(const object& from, const char* name) : name_(name) { error_ = from[name].get(value_); }

  bool absent() const { return error_ != simdjson::SUCCESS || value_.is_null(); }

  Status read(std::string& out) const {
    std::string_view text;
    if (absent()) return fault(std::string(name_) + " is missing");
    if (value_.get_string().get(text)) return fault(std::string(name_) + " must be a string");
    out = text;
    return {};
  }

  Status read(uint64_t& out, uint64_t limit) const {
    if (absent()) return fault(std::string(name_) + " is missing");
    uint64_t number = 0;
    if (value_.get_uint64().get(number)) return fault(std::string(name_) + " must be an integer that is not negative");
    if (number > limit) return fault(std::string(name_) + " is too large");
    out = number;
    return {};
  }

  Status read(uint32_t& out) const {
    uint64_t number = 0;
    KVF_RETURN_IF_ERROR(read(number, std::numeric_limits<uint32_t>::max()));
    out = static_cast<uint32_t>(number);
    return {};
  }

  // 64 bits do not fit a JSON number: 1 to 16 hexadecimal digits.
  Status read_hex(uint64_t& out) const {
    std::string text;
    KVF_RETURN_IF_ERROR(read(text));
    const auto got = std::from_chars(text.data(), text.data() + text.size(), out, 16);
    if (text.empty() || text.size() > 16 || got.ec != std::errc() || got.ptr != text.data() + text.size()) {
      return fault(std::string(name_) + " must be 1 to 16 hexadecimal digits");
    }
    return {};
  }

  Status read_milliseconds(std::optional<Duration>& out) const {
    if (absent()) return {};
    uint64_t number = 0;
    KVF_RETURN_IF_ERROR(read(number, static_cast<uint64_t>(kMaxAge / std::chrono::milliseconds(1))));
    out = std::chrono::milliseconds(number);
    return {};
  }

 private:
  const char* name_;
  element value_;
  simdjson::error_code error_;
};

Status read_rank(const object& from, Rank& rank) {
  KVF_RETURN_IF_ERROR(Member(from, "dp_rank").read(rank.dp));
  KVF_RETURN_IF_ERROR(Member(from, "tp_rank").read(rank.tp));
  return Member(from, "pp_rank").read(rank.pp);
}

Status read_incarnation(const object& from, uint64_t& incarnation) {
  const Member member(from, "incarnation");
  return member.absent() ? Status() : member.read_hex(incarnation);
}

Status read_registration(const object& from, Registration& out) {
  KVF_RETURN_IF_ERROR(Member(from, "engine_id").read(out.engine_id));
  KVF_RETURN_IF_ERROR(read_rank(from, out.rank));
  KVF_RETURN_IF_ERROR(Member(from, "addr").read(out.addr));
  if (const Member http(from, "http"); !http.absent()) KVF_RETURN_IF_ERROR(http.read(out.http));
  KVF_RETURN_IF_ERROR(read_incarnation(from, out.incarnation));
  KVF_RETURN_IF_ERROR(Member(from, "age_ms").read_milliseconds(out.age));
  return Member(from, "ttl_ms").read_milliseconds(out.ttl);
}

std::string rank_members(const std::string& engine_id, const Rank& rank) {
  return fmt::format(R"("engine_id":{},"dp_rank":{},"tp_rank":{},"pp_rank":{})", json_quote(engine_id), rank.dp,
                     rank.tp, rank.pp);
}

std::string identity_members(const Registration& what) {
  std::string out = rank_members(what.engine_id, what.rank) + R"(,"addr":)" + json_quote(what.addr);
  if (!what.http.empty()) out += R"(,"http":)" + json_quote(what.http);
  if (what.incarnation != 0) out += fmt::format(R"(,"incarnation":"{:016x}")", what.incarnation);
  return out;
}

bool read_key(std::string_view key, uint32_t& out) {
  const auto got = std::from_chars(key.data(), key.data() + key.size(), out);
  return got.ec == std::errc() && got.ptr == key.data() + key.size();
}

// {"<tp>":{"<pp>":"addr"}}
Status read_addresses(const object& by_tp, Registration& worker, std::vector<Registration>& workers) {
  for (const auto& [tp, value] : by_tp) {
    object by_pp;
    if (!read_key(tp, worker.rank.tp) || value.get_object().get(by_pp)) return fault("worker_addr is malformed");
    for (const auto& [pp, addr] : by_pp) {
      std::string_view text;
      if (!read_key(pp, worker.rank.pp) || addr.get_string().get(text)) return fault("worker_addr is malformed");
      worker.addr = text;
      workers.push_back(worker);
    }
  }
  return {};
}

}  // namespace

Result<Registration> parse_registration(std::string_view body) {
  Document document;
  Registration registration;
  KVF_RETURN_IF_ERROR(document.parse(body));
  KVF_RETURN_IF_ERROR(read_registration(document.root, registration));
  return registration;
}

std::string format_registration(const Registration& registration) {
  const auto milliseconds = [](Duration span) { return span / std::chrono::milliseconds(1); };
  std::string out = "{" + identity_members(registration);
  if (registration.age) out += fmt::format(R"(,"age_ms":{})", milliseconds(*registration.age));
  if (registration.ttl) out += fmt::format(R"(,"ttl_ms":{})", milliseconds(*registration.ttl));
  return out + "}";
}

Result<WorkerName> parse_worker_name(std::string_view body) {
  Document document;
  WorkerName name;
  KVF_RETURN_IF_ERROR(document.parse(body));
  KVF_RETURN_IF_ERROR(Member(document.root, "engine_id").read(name.engine_id));
  KVF_RETURN_IF_ERROR(read_rank(document.root, name.rank));
  KVF_RETURN_IF_ERROR(read_incarnation(document.root, name.incarnation));
  return name;
}

std::string format_worker_name(const WorkerName& name) {
  std::string out = "{" + rank_members(name.engine_id, name.rank);
  if (name.incarnation != 0) out += fmt::format(R"(,"incarnation":"{:016x}")", name.incarnation);
  return out + "}";
}

Result<Removal> parse_removal(std::string_view body) {
  Document document;
  Removal removal;
  KVF_RETURN_IF_ERROR(document.parse(body));
  KVF_RETURN_IF_ERROR(Member(document.root, "engine_id").read(removal.engine_id));
  KVF_RETURN_IF_ERROR(read_incarnation(document.root, removal.incarnation));
  bool any = false;
  for (const char* name : {"dp_rank", "tp_rank", "pp_rank"}) any = any || !Member(document.root, name).absent();
  if (!any) return removal;
  Rank rank;
  KVF_RETURN_IF_ERROR(read_rank(document.root, rank));
  removal.rank = rank;
  return removal;
}

std::string format_workers(const std::vector<const Registration*>& workers) {
  std::string out = R"({"workers":[)";
  for (const Registration* worker : workers) {
    if (out.back() == '}') out += ',';
    out += "{" + identity_members(*worker) + "}";
  }
  return out + "]}";
}

Result<std::vector<Registration>> parse_workers(std::string_view body) {
  Document document;
  KVF_RETURN_IF_ERROR(document.parse(body));
  simdjson::dom::array list;
  if (document.root["workers"].get_array().get(list)) return fault("workers must be an array");
  std::vector<Registration> workers;
  for (const element item : list) {
    object members;
    if (item.get_object().get(members)) return fault("a worker must be an object");
    KVF_RETURN_IF_ERROR(read_registration(members, workers.emplace_back()));
  }
  return workers;
}

Result<std::vector<Registration>> parse_query(std::string_view body) {
  Document document;
  KVF_RETURN_IF_ERROR(document.parse(body));
  std::vector<Registration> workers;
  for (const auto& [dp, value] : document.root) {
    Registration worker;
    object instance, by_tp;
    if (!read_key(dp, worker.rank.dp) || value.get_object().get(instance)) return fault("a dp rank is malformed");
    KVF_RETURN_IF_ERROR(Member(instance, "engine_id").read(worker.engine_id));
    if (instance["worker_addr"].get_object().get(by_tp)) return fault("worker_addr is missing");
    KVF_RETURN_IF_ERROR(read_addresses(by_tp, worker, workers));
  }
  return workers;
}

}  // namespace kvferry::bootstrap
