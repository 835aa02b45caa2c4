#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"
#include "proxy/splice.h"

namespace kvferry::proxy {

// What the prefiller and the decoder are sent. Pure.

enum class Endpoint { completions, chat, responses };
std::optional<Endpoint> endpoint_of(std::string_view path);

// How prefiller and decoder find each other's KV.
enum class Dialect { mooncake, kvferry, nixl, lmcache };
std::optional<Dialect> parse_dialect(std::string_view name);
std::string_view to_string(Dialect dialect);

struct RequestFacts {
  Members members;
  std::string_view prompt;   // raw text of "prompt", "messages" or "input"
  std::string_view session;  // raw text of "user", without quotes; may be empty
  bool stream = false;
  // Why the request goes to the decoder alone; empty if it can be split.
  std::string_view alone;
};

// Reads a client's body. Errors are for the client: 400.
Result<RequestFacts> read_request(Endpoint endpoint, const std::string& body, Scanner& scanner);

// Checks any other JSON body for kv_transfer_params hidden where vLLM would honour them.
Status refuse_hidden_params(const Members& members, Scanner& scanner);
// The same for a form, whose parts are not parsed: neither of the names may stand in it.
bool hides_params(std::string_view form);

// The client's body as a prefiller gets it: one token, not streamed, nothing that ends it early or is not allowed with
// one token. `params` is the raw value of kv_transfer_params, or empty for none.
Spliced prefill_body(Endpoint endpoint, const RequestFacts& facts, std::string_view params);

// The client's bytes, apart from kv_transfer_params: its own are taken out, `params` put in unless empty.
Spliced decode_body(const Members& members, std::string_view params);

struct Handover {
  std::string transfer_id;
  std::string bootstrap;  // "http://host:port", empty if the dialect has none
  std::string engine_id;  // of the prefiller's dp rank
  std::string returned;   // raw kv_transfer_params of the prefiller's answer (nixl)
};

std::string prefill_params(Dialect dialect, std::string_view transfer_id);
std::string decode_params(Dialect dialect, const Handover& handover);

// The body of a request to a decoder that vLLM refuses before admission: it makes the decoder's connector tell the
// prefiller that nobody will fetch this parcel.
std::string release_ping_body(std::string_view transfer_id, std::string_view params);

}  // namespace kvferry::proxy
