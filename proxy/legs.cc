#include "proxy/legs.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "http/json.h"
#include "http/message.h"

namespace kvferry::proxy {
namespace {

constexpr std::string_view kParams = "kv_transfer_params";
// Room for what these texts usually hold, so that they are allocated once.
constexpr size_t kUsualInserted = 192;
constexpr size_t kUsualParams = 384;

std::optional<double> number(const Member* member) {
  if (!member) return std::nullopt;
  double value = 0;
  const auto end = member->value.data() + member->value.size();
  const auto read = std::from_chars(member->value.data(), end, value);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return value;
}

bool is_true(const Member* member) {
  return member && member->value == "true";
}
bool present(const Member* member) {
  return member && member->value != "null" && member->value != "false";
}

// True unless the member is absent, null or the number 1.
bool more_than_one(const Member* member) {
  if (!present(member)) return false;
  return number(member) != 1.0;
}

// A completion's prompt may be a list of prompts: each would be a request of its own under one transfer_id. A list with
// one text, or of token ids, is one prompt.
bool several_prompts(std::string_view prompt) {
  if (!prompt.starts_with('[')) return false;
  int depth = 0;
  bool in_string = false;
  size_t items = 1;
  bool nested = false;
  for (size_t i = 0; i < prompt.size(); ++i) {
    const char c = prompt[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"' && in_string;
      continue;
    }
    if (c == '"') {
      in_string = true;
      nested = nested || depth == 1;
    }
    if (c == '[' || c == '{') nested = nested || ++depth == 2;
    if (c == ']' || c == '}') --depth;
    if (c == ',' && depth == 1) ++items;
  }
  return nested && items > 1;
}

std::string_view alone_reason(Endpoint endpoint, const Members& members, std::string_view prompt) {
  if (more_than_one(members.find("n"))) return "n";
  if (more_than_one(members.find("best_of"))) return "best_of";
  if (is_true(members.find("use_beam_search"))) return "beam_search";
  if (present(members.find("prompt_logprobs"))) return "prompt_logprobs";
  if (is_true(members.find("echo"))) return "echo";
  if (prompt.empty()) return "no_prompt";
  if (endpoint == Endpoint::completions && several_prompts(prompt)) return "several_prompts";
  if (present(members.find("prompt_embeds"))) return "prompt_embeds";
  if (number(members.find("max_tokens")) == 0.0) return "max_tokens";
  if (endpoint == Endpoint::responses && present(members.find("previous_response_id"))) return "previous_response";
  if (endpoint == Endpoint::responses && is_true(members.find("background"))) return "background";
  return {};
}

constexpr std::array<std::string_view, 2> kPromptOf[] = {
    {"prompt", ""},
    {"messages", ""},
    {"input", ""},
};

}  // namespace

std::optional<Endpoint> endpoint_of(std::string_view path) {
  if (path == "/v1/completions") return Endpoint::completions;
  if (path == "/v1/chat/completions") return Endpoint::chat;
  if (path == "/v1/responses") return Endpoint::responses;
  return std::nullopt;
}

std::optional<Dialect> parse_dialect(std::string_view name) {
  for (const Dialect dialect : {Dialect::mooncake, Dialect::kvferry, Dialect::nixl, Dialect::lmcache}) {
    if (to_string(dialect) == name) return dialect;
  }
  return std::nullopt;
}

std::string_view to_string(Dialect dialect) {
  switch (dialect) {
    case Dialect::mooncake:
      return "mooncake";
    case Dialect::kvferry:
      return "kvferry";
    case Dialect::nixl:
      return "nixl";
    case Dialect::lmcache:
      return "lmcache";
  }
  return "unknown";
}

Status refuse_hidden_params(const Members& members, Scanner& scanner) {
  for (const Member& member : members.all) {
    if (member.name != "vllm_xargs" || !member.value.starts_with('{')) continue;
    std::string copy;
    copy.reserve(member.value.size() + http::kBodyPadding);
    copy.assign(member.value);
    const auto inner = scanner.scan(copy);
    if (!inner.ok()) return inner.error();
    if (inner->find(kParams)) {
      return Error{ErrorCode::permission_denied, "kv_transfer_params may not be given in vllm_xargs", "", "", ""};
    }
  }
  return {};
}

namespace {

// A part's name in pieces or percent signs, as RFC 2231 has it: `name*=`, `name*0=`; not the `filename*=` of a file.
bool has_encoded_name(std::string_view form) {
  constexpr std::string_view kName = "name*";
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  for (size_t star = form.find('*'); star != std::string_view::npos; star = form.find('*', star + 1)) {
    if (star + 1 < kName.size()) continue;
    const size_t begin = star + 1 - kName.size();
    if (!std::equal(kName.begin(), kName.end(), form.begin() + static_cast<std::ptrdiff_t>(begin),
                    [&](char a, char b) { return a == lower(b); }))
      continue;
    if (begin == 0 || std::string_view("; \t\r\n").find(form[begin - 1]) != std::string_view::npos) return true;
  }
  return false;
}

}  // namespace

bool hides_params(std::string_view form) {
  return form.find(kParams) != std::string_view::npos || form.find("vllm_xargs") != std::string_view::npos ||
         has_encoded_name(form);
}

Result<RequestFacts> read_request(Endpoint endpoint, const std::string& body, Scanner& scanner) {
  KVF_ASSIGN_OR_RETURN(Members members, scanner.scan(body));
  KVF_RETURN_IF_ERROR(refuse_hidden_params(members, scanner));
  RequestFacts facts;
  facts.members = std::move(members);
  const Member* prompt = facts.members.find(kPromptOf[static_cast<size_t>(endpoint)][0]);
  if (present(prompt)) facts.prompt = prompt->value;
  facts.stream = is_true(facts.members.find("stream"));
  const Member* user = facts.members.find("user");
  if (user && user->value.size() > 2 && user->value.front() == '"') {
    facts.session = user->value.substr(1, user->value.size() - 2);
  }
  facts.alone = alone_reason(endpoint, facts.members, facts.prompt);
  return facts;
}

Spliced prefill_body(Endpoint endpoint, const RequestFacts& facts, std::string_view params) {
  static constexpr std::array<std::string_view, 16> kReplaced = {kParams,
                                                                 "stream",
                                                                 "max_tokens",
                                                                 "max_completion_tokens",
                                                                 "max_output_tokens",
                                                                 "n",
                                                                 "min_tokens",
                                                                 "ignore_eos",
                                                                 "stop",
                                                                 "stop_token_ids",
                                                                 "logprobs",
                                                                 "top_logprobs",
                                                                 "stream_options",
                                                                 "best_of",
                                                                 "min_completion_tokens",
                                                                 "background"};
  std::string inserted;
  inserted.reserve(kUsualInserted + params.size());
  inserted.append(R"("stream":false)");
  if (endpoint == Endpoint::responses) {
    inserted.append(R"(,"max_output_tokens":1)");
  } else {
    inserted.append(R"(,"max_tokens":1)");
    if (facts.members.find("max_completion_tokens")) inserted.append(R"(,"max_completion_tokens":1)");
    inserted.append(R"(,"n":1)");
  }
  inserted.append(R"(,"min_tokens":1,"ignore_eos":true)");
  if (!params.empty()) inserted.append(R"(,"kv_transfer_params":)").append(params);
  return splice(facts.members, kReplaced, inserted);
}

Spliced decode_body(const Members& members, std::string_view params) {
  static constexpr std::array<std::string_view, 1> kReplaced = {kParams};
  std::string inserted;
  inserted.reserve(kUsualInserted + params.size());
  if (!params.empty()) inserted.append(R"("kv_transfer_params":)").append(params);
  return splice(members, kReplaced, inserted);
}

std::string prefill_params(Dialect dialect, std::string_view transfer_id) {
  if (dialect == Dialect::lmcache) return {};
  std::string out;
  out.reserve(kUsualParams);
  out.append(R"({"do_remote_decode":true,"do_remote_prefill":false)");
  if (dialect == Dialect::nixl) {
    out.append(R"(,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null})");
    return out;
  }
  out.append(R"(,"transfer_id":)");
  http::append_json_string(out, transfer_id);
  out.push_back('}');
  return out;
}

std::string decode_params(Dialect dialect, const Handover& handover) {
  if (dialect == Dialect::lmcache) return {};
  if (dialect == Dialect::nixl) return handover.returned;
  std::string out;
  out.reserve(kUsualParams);
  out.append(R"({"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":)");
  http::append_json_string(out, handover.bootstrap);
  out.append(R"(,"remote_engine_id":)");
  http::append_json_string(out, handover.engine_id);
  out.append(R"(,"transfer_id":)");
  http::append_json_string(out, handover.transfer_id);
  out.push_back('}');
  return out;
}

std::string release_ping_body(std::string_view transfer_id, std::string_view params) {
  std::string out = R"({"model":)";
  http::append_json_string(out, "kvferry-release-" + std::string(transfer_id));
  out.append(R"(,"prompt":"release","max_tokens":1,"kv_transfer_params":)").append(params).append("}");
  return out;
}

}  // namespace kvferry::proxy
