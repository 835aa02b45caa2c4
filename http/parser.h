#pragma once

#include <optional>
#include <string_view>

#include "common/result.h"
#include "http/message.h"

namespace kvferry::http {

// Reading of message heads, stricter than most: nothing that another reader could understand differently, above all
// where a message ends (request smuggling). Pure: bytes in, head out. The fuzz target holds it against Beast's parser.

// Where the head ends in `input` (behind the empty line), or nothing if more bytes are needed. `scanned` carries the
// progress from call to call, so that a head that trickles in is not searched again.
std::optional<size_t> find_head_end(std::string_view input, size_t& scanned);

// An error of a request head carries the HTTP status that the sender deserves.
struct HeadError {
  int status = 400;
  std::string message;
};

// `head` ends with its empty line. Refused: bare LF or CR, folded lines, NUL, more than one Content-Length or Host,
// Content-Length together with Transfer-Encoding, any coding but "chunked", coding in HTTP/1.0, absolute targets,
// versions other than 1.0 and 1.1, more than kMaxFields fields (431) or options of the connection.
std::optional<HeadError> parse_request_head(std::string_view head, RequestHead& out);

// `to_head`: the response answers a HEAD request. The same rules for framing.
Result<ResponseHead> parse_response_head(std::string_view head, bool to_head);

}  // namespace kvferry::http
