#include <algorithm>

#include "sim/json.h"
#include "sim/openai.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

std::string_view reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::abort:
      return "abort";
    case FinishReason::error:
      break;
  }
  return "error";
}

std::string_view error_type(unsigned status) {
  switch (status) {
    case 400:
      return "BadRequestError";
    case 404:
      return "NotFoundError";
    case 503:
      return "ServiceUnavailableError";
    case 504:
      return "TimeoutError";
    default:
      return "InternalServerError";
  }
}

std::string as_event(std::string json) {
  return "data: " + std::move(json) + "\n\n";
}

void write_bytes(JsonWriter& json, Token token) {
  json.key("bytes").open('[');
  for (const char c : token_bytes(token)) json.number(int64_t{static_cast<unsigned char>(c)});
  json.close(']');
}

void write_chat_logprobs(JsonWriter& json, const std::vector<SampledToken>& tokens) {
  json.key("logprobs").open('{').key("content").open('[');
  for (const SampledToken& sampled : tokens) {
    json.open('{').key("token").string(token_name(sampled.token)).key("logprob").number(double{sampled.logprob});
    write_bytes(json, sampled.token);
    json.key("top_logprobs").open('[');
    for (const TokenLogprob& top : sampled.top) {
      json.open('{').key("token").string(token_name(top.token)).key("logprob").number(double{top.logprob});
      write_bytes(json, top.token);
      json.close('}');
    }
    json.close(']').close('}');
  }
  json.close(']').close('}');
}

void write_text_logprobs(JsonWriter& json, const std::vector<SampledToken>& tokens, size_t offset) {
  json.key("logprobs").open('{').key("tokens").open('[');
  for (const SampledToken& sampled : tokens) json.string(token_name(sampled.token));
  json.close(']').key("token_logprobs").open('[');
  for (const SampledToken& sampled : tokens) json.number(double{sampled.logprob});
  json.close(']').key("top_logprobs").open('[');
  for (const SampledToken& sampled : tokens) {
    json.open('{');
    const bool listed = std::ranges::any_of(sampled.top, [&](const auto& top) { return top.token == sampled.token; });
    for (const TokenLogprob& top : sampled.top) json.key(token_name(top.token)).number(double{top.logprob});
    if (!listed) json.key(token_name(sampled.token)).number(double{sampled.logprob});
    json.close('}');
  }
  json.close(']').key("text_offset").open('[');
  for (const SampledToken& sampled : tokens) {
    json.number(static_cast<int64_t>(offset));
    offset += token_bytes(sampled.token).size();
  }
  json.close(']').close('}');
}

}  // namespace

unsigned http_status(const Error& error) {
  switch (error.code) {
    case ErrorCode::invalid_argument:
      return 400;
    case ErrorCode::not_found:
      return 404;
    case ErrorCode::resource_exhausted:
    case ErrorCode::unavailable:
      return 503;
    case ErrorCode::deadline_exceeded:
      return 504;
    default:
      return 500;
  }
}

std::string format_error(const Error& error) {
  const unsigned status = http_status(error);
  JsonWriter json;
  json.open('{').key("error").open('{').key("message").string(error.to_string());
  json.key("type").string(error_type(status)).key("param").null().key("code").number(int64_t{status});
  return json.close('}').close('}').take();
}

void CompletionFormatter::collect(const GenerationUpdate& update) {
  whole_.text += update.text;
  if (update.token) whole_.tokens.push_back(*update.token);
  whole_.end = update.end;
}

std::string CompletionFormatter::response() const {
  if (whole_.end && whole_.end->error) return format_error(*whole_.end->error);
  JsonWriter json;
  json.open('{');
  write_head(json, request_.chat ? "chat.completion" : "text_completion");
  json.key("choices").open('[');
  write_choice(json, whole_, false);
  json.close(']');
  if (whole_.end) write_usage(json, *whole_.end);
  json.key("kv_transfer_params").null();
  return json.close('}').take();
}

std::string CompletionFormatter::events(const GenerationUpdate& update) {
  std::string text;
  if (request_.chat && !started_) text += chat_role_event();
  started_ = true;
  if (update.end && update.end->error) return text + as_event(format_error(*update.end->error)) + "data: [DONE]\n\n";
  Piece piece{.text = update.text, .tokens = {}, .end = update.end};
  if (update.token) piece.tokens.push_back(*update.token);
  const bool tells = !piece.text.empty() || request_.return_token_ids || request_.generation.sampling.logprobs;
  if (tells || piece.end) text += event(piece);
  if (!piece.end) return text;
  if (request_.include_usage) {
    JsonWriter json;
    json.open('{');
    write_head(json, request_.chat ? "chat.completion.chunk" : "text_completion");
    json.key("choices").open('[').close(']');
    write_usage(json, *piece.end);
    text += as_event(json.close('}').take());
  }
  return text + "data: [DONE]\n\n";
}

std::string CompletionFormatter::event(const Piece& piece) {
  JsonWriter json;
  json.open('{');
  write_head(json, request_.chat ? "chat.completion.chunk" : "text_completion");
  json.key("choices").open('[');
  write_choice(json, piece, true);
  json.close(']');
  for (const SampledToken& sampled : piece.tokens) text_offset_ += token_bytes(sampled.token).size();
  return as_event(json.close('}').take());
}

std::string CompletionFormatter::chat_role_event() const {
  JsonWriter json;
  json.open('{');
  write_head(json, "chat.completion.chunk");
  json.key("choices").open('[').open('{').key("index").number(int64_t{0});
  json.key("delta").open('{').key("role").string("assistant").key("content").string("").close('}');
  json.key("logprobs").null().key("finish_reason").null().close('}').close(']');
  return as_event(json.close('}').take());
}

void CompletionFormatter::write_head(JsonWriter& json, std::string_view object) const {
  json.key("id").string(head_.id).key("object").string(object);
  json.key("created").number(head_.created).key("model").string(head_.model);
}

void CompletionFormatter::write_choice(JsonWriter& json, const Piece& piece, bool streamed) const {
  json.open('{').key("index").number(int64_t{0});
  if (!request_.chat) {
    json.key("text").string(piece.text);
  } else if (streamed) {
    json.key("delta").open('{').key("content").string(piece.text).close('}');
  } else {
    json.key("message").open('{').key("role").string("assistant").key("content").string(piece.text).close('}');
  }
  write_logprobs(json, piece);
  json.key("finish_reason");
  piece.end ? json.string(reason_name(piece.end->reason)) : json.null();
  if (request_.return_token_ids) {
    json.key("token_ids").open('[');
    for (const SampledToken& sampled : piece.tokens) json.number(int64_t{sampled.token});
    json.close(']');
  }
  json.close('}');
}

void CompletionFormatter::write_logprobs(JsonWriter& json, const Piece& piece) const {
  if (!request_.generation.sampling.logprobs || piece.tokens.empty()) {
    json.key("logprobs").null();
  } else if (request_.chat) {
    write_chat_logprobs(json, piece.tokens);
  } else {
    write_text_logprobs(json, piece.tokens, text_offset_);
  }
}

void CompletionFormatter::write_usage(JsonWriter& json, const GenerationEnd& end) const {
  json.key("usage").open('{');
  json.key("prompt_tokens").number(static_cast<int64_t>(end.prompt_tokens));
  json.key("completion_tokens").number(static_cast<int64_t>(end.answer_tokens));
  json.key("total_tokens").number(static_cast<int64_t>(end.prompt_tokens + end.answer_tokens));
  json.key("prompt_tokens_details").open('{');
  json.key("cached_tokens").number(static_cast<int64_t>(end.cached_tokens)).close('}').close('}');
}

std::string format_models(const std::string& model, size_t max_model_len, int64_t created) {
  JsonWriter json;
  json.open('{').key("object").string("list").key("data").open('[').open('{');
  json.key("id").string(model).key("object").string("model").key("created").number(created);
  json.key("owned_by").string("kvferry-sim").key("max_model_len").number(static_cast<int64_t>(max_model_len));
  return json.close('}').close(']').close('}').take();
}

}  // namespace kvferry::sim
