#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "sim/serving.h"

namespace kvferry::sim {

class JsonWriter;

// /v1/completions and /v1/chat/completions as text in and text out: no sockets, no clocks, no state. Field names and
// error shapes are those of OpenAI's API as vLLM speaks it.

struct CompletionRequest {
  bool chat = false;
  std::string model;  // empty: not given
  bool stream = false;
  bool include_usage = false;     // of stream_options
  bool return_token_ids = false;  // vLLM's extension
  GenerationRequest generation;
};

// What the server puts in where the client says nothing, and checks against.
struct ParseContext {
  std::string model;            // the name that this server answers to
  size_t max_model_len = 4096;  // chat without max_tokens: all that is left
  uint64_t seed = 0;            // for a request without one
};

// Reads a request body that anybody may have sent. The Error's message names the field; its code is invalid_argument
// (400) or not_found (404, another model).
Result<CompletionRequest> parse_completion(std::string_view body, const ParseContext& context);
Result<CompletionRequest> parse_chat(std::string_view body, const ParseContext& context);

// The hand-over parameters of a body that was refused, so that the owner of the KV can be told that nobody will come.
// Nothing where the body does not name a prefiller's transfer.
std::optional<TransferRef> refused_transfer(std::string_view body);

// 400, 404, 503, ... for an error of this server or of the request.
unsigned http_status(const Error& error);
// {"error":{"message","type","param","code"}}
std::string format_error(const Error& error);

// What every response of one request repeats.
struct ResponseHead {
  std::string id;  // "cmpl-..." or "chatcmpl-..."
  std::string model;
  int64_t created = 0;  // seconds since 1970
};

// Makes the responses of one request from its updates, in order. The views that it is made from outlive it.
class CompletionFormatter {
 public:
  CompletionFormatter(const CompletionRequest& request, const ResponseHead& head) : request_(request), head_(head) {}

  // Not streamed: collects; response() is the body once the end has come. An answer that ended in an error is
  // format_error() of it instead.
  void collect(const GenerationUpdate& update);
  std::string response() const;

  // Streamed: the server-sent events of one update, with the last one the usage, if asked for, and [DONE]. May be
  // empty.
  std::string events(const GenerationUpdate& update);

 private:
  struct Piece {
    std::string text;
    std::vector<SampledToken> tokens;
    std::optional<GenerationEnd> end;
  };
  std::string event(const Piece& piece);
  std::string chat_role_event() const;
  void write_head(JsonWriter& json, std::string_view object) const;
  void write_choice(JsonWriter& json, const Piece& piece, bool streamed) const;
  void write_logprobs(JsonWriter& json, const Piece& piece) const;
  void write_usage(JsonWriter& json, const GenerationEnd& end) const;

  const CompletionRequest& request_;
  const ResponseHead& head_;
  Piece whole_;
  size_t text_offset_ = 0;  // of the next token, in bytes of the answer
  bool started_ = false;
};

// {"object":"list","data":[{"id":model,...}]}
std::string format_models(const std::string& model, size_t max_model_len, int64_t created);

}  // namespace kvferry::sim
