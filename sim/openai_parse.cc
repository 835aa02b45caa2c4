#include <fmt/format.h>
#include <simdjson.h>

#include <cmath>

#include "sim/openai.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::element_type;
using simdjson::dom::object;

constexpr size_t kMaxStops = 16;        // stop strings, stop token ids
constexpr size_t kMaxStopBytes = 4096;  // of one stop string
constexpr size_t kMaxIdBytes = 1024;    // of each text in kv_transfer_params
constexpr size_t kMaxBodyBytes = 64 << 20;

Error bad(std::string message) {
  return Error{ErrorCode::invalid_argument, std::move(message), "", "", "request"};
}

// The member, or nothing where it is missing or null.
std::optional<element> member(const object& from, std::string_view name) {
  element found;
  if (from[name].get(found) != simdjson::SUCCESS || found.is_null()) return std::nullopt;
  return found;
}

Result<bool> read_bool(const object& from, std::string_view name, bool fallback) {
  const auto found = member(from, name);
  if (!found) return fallback;
  bool value = false;
  if (found->get(value) != simdjson::SUCCESS) return bad(fmt::format("{} must be true or false", name));
  return value;
}

Result<double> read_number(const object& from, std::string_view name, double fallback, double low, double high) {
  const auto found = member(from, name);
  if (!found) return fallback;
  double value = 0;
  if (found->get(value) != simdjson::SUCCESS) return bad(fmt::format("{} must be a number", name));
  if (!(value >= low && value <= high)) return bad(fmt::format("{} must be in [{}, {}]", name, low, high));
  return value;
}

Result<size_t> read_size(const object& from, std::string_view name, size_t fallback, size_t low, size_t high) {
  const auto found = member(from, name);
  if (!found) return fallback;
  uint64_t value = 0;
  if (found->get(value) != simdjson::SUCCESS || value < low || value > high) {
    return bad(fmt::format("{} must be an integer in [{}, {}]", name, low, high));
  }
  return static_cast<size_t>(value);
}

Result<std::string> read_string(const object& from, std::string_view name, size_t limit) {
  const auto found = member(from, name);
  if (!found) return std::string();
  std::string_view value;
  if (found->get(value) != simdjson::SUCCESS) return bad(fmt::format("{} must be a string", name));
  if (value.size() > limit) return bad(fmt::format("{} is longer than {} bytes", name, limit));
  return std::string(value);
}

Result<std::vector<Token>> read_tokens(const array& from, std::string_view name) {
  std::vector<Token> tokens;
  for (const element item : from) {
    uint64_t value = 0;
    if (item.get(value) != simdjson::SUCCESS || value >= kVocabulary) {
      return bad(fmt::format("{} must hold token ids below {}", name, kVocabulary));
    }
    tokens.push_back(static_cast<Token>(value));
  }
  return tokens;
}

Result<std::vector<Token>> read_prompt(const element& from) {
  std::string_view text;
  if (from.get(text) == simdjson::SUCCESS) return encode(text);
  array items;
  if (from.get(items) != simdjson::SUCCESS) return bad("prompt must be a string or a list of token ids");
  if (items.begin() == items.end()) return bad("prompt must not be empty");
  const element first = *items.begin();
  if (first.type() == element_type::INT64 || first.type() == element_type::UINT64) return read_tokens(items, "prompt");
  if (items.size() > 1) return bad("this server takes one prompt for each request, not a list of prompts");
  if (first.get(text) == simdjson::SUCCESS) return encode(text);
  array tokens;
  if (first.get(tokens) == simdjson::SUCCESS && tokens.begin() != tokens.end()) return read_tokens(tokens, "prompt");
  return bad("prompt must be a string or a list of token ids");
}

// A message's text: a string, or parts of type "text".
Result<std::string> read_content(const object& message) {
  const auto content = member(message, "content");
  if (!content) return std::string();
  std::string_view text;
  if (content->get(text) == simdjson::SUCCESS) return std::string(text);
  array parts;
  if (content->get(parts) != simdjson::SUCCESS) return bad("content must be a string or a list of parts");
  std::string joined;
  for (const element part : parts) {
    object fields;
    if (part.get(fields) != simdjson::SUCCESS || fields["text"].get(text) != simdjson::SUCCESS) {
      return bad("this model reads only text parts");
    }
    joined += text;
  }
  return joined;
}

Result<std::vector<Token>> read_messages(const object& body) {
  const auto found = member(body, "messages");
  array items;
  if (!found || found->get(items) != simdjson::SUCCESS) return bad("messages must be a list");
  std::vector<ChatMessage> messages;
  for (const element item : items) {
    object fields;
    std::string_view role;
    if (item.get(fields) != simdjson::SUCCESS || fields["role"].get(role) != simdjson::SUCCESS) {
      return bad("each message must have a role");
    }
    KVF_ASSIGN_OR_RETURN(std::string content, read_content(fields));
    messages.push_back({std::string(role), std::move(content)});
  }
  if (messages.empty()) return bad("messages must not be empty");
  return encode_chat(messages);
}

Result<std::vector<std::string>> read_stop(const object& body) {
  const auto found = member(body, "stop");
  std::vector<std::string> stop;
  if (!found) return stop;
  const auto add = [&](const element& item) {
    std::string_view text;
    if (item.get(text) != simdjson::SUCCESS || text.size() > kMaxStopBytes || stop.size() == kMaxStops) return false;
    if (!text.empty()) stop.emplace_back(text);
    return true;
  };
  const std::string refusal = fmt::format("stop must be a string or a list of at most {} strings", kMaxStops);
  array items;
  if (found->get(items) != simdjson::SUCCESS) {
    if (!add(*found)) return bad(refusal);
    return stop;
  }
  for (const element item : items) {
    if (!add(item)) return bad(refusal);
  }
  return stop;
}

Result<std::optional<size_t>> read_logprobs(const object& body, bool chat) {
  if (!chat) {
    if (!member(body, "logprobs")) return std::optional<size_t>();
    KVF_ASSIGN_OR_RETURN(const size_t count, read_size(body, "logprobs", 0, 0, kMaxLogprobs));
    return std::optional<size_t>(count);
  }
  KVF_ASSIGN_OR_RETURN(const bool wanted, read_bool(body, "logprobs", false));
  KVF_ASSIGN_OR_RETURN(const size_t count, read_size(body, "top_logprobs", 0, 0, kMaxLogprobs));
  if (!wanted && count > 0) return bad("top_logprobs needs logprobs to be true");
  return wanted ? std::optional<size_t>(count) : std::nullopt;
}

// Parameters that would change the answer and that this server does not have. Neutral values pass.
Status refuse_unsupported(const object& body) {
  for (const char* name : {"n", "best_of"}) {
    KVF_ASSIGN_OR_RETURN(const size_t count, read_size(body, name, 1, 1, 1u << 16));
    if (count > 1) return bad(fmt::format("{} must be 1: this server gives one answer for each request", name));
  }
  for (const char* name : {"frequency_penalty", "presence_penalty", "min_p"}) {
    KVF_ASSIGN_OR_RETURN(const double value, read_number(body, name, 0, -2, 2));
    if (value != 0) return bad(fmt::format("{} is not supported by this server", name));
  }
  for (const char* name : {"echo", "use_beam_search"}) {
    KVF_ASSIGN_OR_RETURN(const bool value, read_bool(body, name, false));
    if (value) return bad(fmt::format("{} is not supported by this server", name));
  }
  for (const char* name : {"prompt_logprobs", "suffix", "logit_bias"}) {
    const auto found = member(body, name);
    if (!found) continue;
    object fields;
    if (found->get(fields) == simdjson::SUCCESS && fields.size() == 0) continue;
    return bad(fmt::format("{} is not supported by this server", name));
  }
  KVF_ASSIGN_OR_RETURN(const double repetition, read_number(body, "repetition_penalty", 1, 0, 100));
  if (repetition != 1) return bad("repetition_penalty is not supported by this server");
  KVF_ASSIGN_OR_RETURN(const double top_k, read_number(body, "top_k", 0, -1, 1e9));
  if (top_k > 0) return bad("top_k is not supported by this server");
  return {};
}

// A field of kv_transfer_params; vLLM's connectors read missing and null alike.
Status read_transfer(const object& body, GenerationRequest& generation) {
  const auto found = member(body, "kv_transfer_params");
  if (!found) return {};
  object params;
  if (found->get(params) != simdjson::SUCCESS) return bad("kv_transfer_params must be an object");
  KVF_ASSIGN_OR_RETURN(const bool produce, read_bool(params, "do_remote_decode", false));
  KVF_ASSIGN_OR_RETURN(const bool consume, read_bool(params, "do_remote_prefill", false));
  if (produce && consume) return bad("kv_transfer_params asks for remote prefill and remote decode at once");
  if (!produce && !consume) return {};
  TransferRef& ref = generation.transfer;
  KVF_ASSIGN_OR_RETURN(ref.transfer_id, read_string(params, "transfer_id", kMaxIdBytes));
  if (ref.transfer_id.empty()) return bad("kv_transfer_params needs a transfer_id");
  generation.role = produce ? KvRole::produce : KvRole::consume;
  if (produce) return {};
  KVF_ASSIGN_OR_RETURN(ref.remote_bootstrap_addr, read_string(params, "remote_bootstrap_addr", kMaxIdBytes));
  KVF_ASSIGN_OR_RETURN(ref.remote_engine_id, read_string(params, "remote_engine_id", kMaxIdBytes));
  if (ref.remote_bootstrap_addr.empty()) return bad("kv_transfer_params needs a remote_bootstrap_addr");
  return {};
}

Status read_sampling(const object& body, bool chat, const ParseContext& context, GenerationRequest& generation) {
  SamplingParams& sampling = generation.sampling;
  KVF_ASSIGN_OR_RETURN(sampling.temperature, read_number(body, "temperature", 1.0, 0, 100));
  KVF_ASSIGN_OR_RETURN(sampling.top_p, read_number(body, "top_p", 1.0, 0, 1));
  if (sampling.top_p == 0) return bad("top_p must be above 0");
  sampling.seed = context.seed;
  if (const auto seed = member(body, "seed")) {
    int64_t value = 0;
    if (seed->get(value) != simdjson::SUCCESS) return bad("seed must be an integer");
    sampling.seed = static_cast<uint64_t>(value);
  }
  const size_t limit = context.max_model_len;
  const size_t prompt = generation.prompt.size();
  const size_t rest = limit > prompt ? limit - prompt : 1;  // 1: the scheduler's refusal says what is wrong
  KVF_ASSIGN_OR_RETURN(const size_t old_name, read_size(body, "max_tokens", chat ? rest : 16, 1, limit));
  KVF_ASSIGN_OR_RETURN(sampling.max_tokens, read_size(body, "max_completion_tokens", old_name, 1, limit));
  KVF_ASSIGN_OR_RETURN(sampling.min_tokens, read_size(body, "min_tokens", 0, 0, limit));
  if (sampling.min_tokens > sampling.max_tokens) {
    return bad(
        fmt::format("min_tokens must be at most max_tokens={}, is {}", sampling.max_tokens, sampling.min_tokens));
  }
  KVF_ASSIGN_OR_RETURN(sampling.ignore_eos, read_bool(body, "ignore_eos", false));
  KVF_ASSIGN_OR_RETURN(sampling.stop, read_stop(body));
  if (const auto ids = member(body, "stop_token_ids")) {
    array items;
    if (ids->get(items) != simdjson::SUCCESS || items.size() > kMaxStops) {
      return bad(fmt::format("stop_token_ids must be a list of at most {} token ids", kMaxStops));
    }
    KVF_ASSIGN_OR_RETURN(sampling.stop_token_ids, read_tokens(items, "stop_token_ids"));
  }
  KVF_ASSIGN_OR_RETURN(sampling.logprobs, read_logprobs(body, chat));
  return {};
}

Status read_request(const object& body, const ParseContext& context, CompletionRequest& request) {
  KVF_ASSIGN_OR_RETURN(request.model, read_string(body, "model", kMaxIdBytes));
  if (!request.model.empty() && request.model != context.model) {
    return Error{ErrorCode::not_found, fmt::format("The model `{}` does not exist", request.model), "", "", "request"};
  }
  KVF_RETURN_IF_ERROR(refuse_unsupported(body));
  if (request.chat) {
    KVF_ASSIGN_OR_RETURN(request.generation.prompt, read_messages(body));
  } else {
    const auto prompt = member(body, "prompt");
    if (!prompt) return bad("prompt is missing");
    KVF_ASSIGN_OR_RETURN(request.generation.prompt, read_prompt(*prompt));
  }
  KVF_RETURN_IF_ERROR(read_sampling(body, request.chat, context, request.generation));
  KVF_ASSIGN_OR_RETURN(request.stream, read_bool(body, "stream", false));
  KVF_ASSIGN_OR_RETURN(request.return_token_ids, read_bool(body, "return_token_ids", false));
  KVF_ASSIGN_OR_RETURN(request.generation.cache_salt, read_string(body, "cache_salt", kMaxIdBytes));
  if (const auto options = member(body, "stream_options")) {
    object fields;
    if (!request.stream) return bad("stream_options needs stream to be true");
    if (options->get(fields) != simdjson::SUCCESS) return bad("stream_options must be an object");
    KVF_ASSIGN_OR_RETURN(request.include_usage, read_bool(fields, "include_usage", false));
  }
  return read_transfer(body, request.generation);
}

Result<CompletionRequest> parse(std::string_view text, const ParseContext& context, bool chat) {
  if (text.size() > kMaxBodyBytes) return bad(fmt::format("the body is larger than {} bytes", kMaxBodyBytes));
  simdjson::dom::parser parser;
  object body;
  if (const auto error = parser.parse(text.data(), text.size()).get(body); error != simdjson::SUCCESS) {
    return Error{ErrorCode::invalid_argument, "the body is not a JSON object", simdjson::error_message(error), "",
                 "request"};
  }
  CompletionRequest request;
  request.chat = chat;
  KVF_RETURN_IF_ERROR(read_request(body, context, request));
  return request;
}

}  // namespace

Result<CompletionRequest> parse_completion(std::string_view body, const ParseContext& context) {
  return parse(body, context, false);
}

Result<CompletionRequest> parse_chat(std::string_view body, const ParseContext& context) {
  return parse(body, context, true);
}

std::optional<TransferRef> refused_transfer(std::string_view text) {
  if (text.size() > kMaxBodyBytes) return std::nullopt;
  simdjson::dom::parser parser;
  object body;
  if (parser.parse(text.data(), text.size()).get(body) != simdjson::SUCCESS) return std::nullopt;
  GenerationRequest generation;
  if (!read_transfer(body, generation).ok() || generation.role != KvRole::consume) return std::nullopt;
  return generation.transfer;
}

}  // namespace kvferry::sim
