// Heads and chunked framing: no crash, the same end however the bytes are split, and no head that two readers could
// understand differently.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "http/chunked.h"
#include "http/parser.h"
#include "http/url.h"

namespace {

using namespace kvferry::http;

void expect(bool good) {
  if (!good) std::abort();
}

void check_request(std::string_view text) {
  size_t scanned = 0;
  const auto end = find_head_end(text, scanned);
  if (!end) return;
  RequestHead head;
  if (parse_request_head(text.substr(0, *end), head)) return;
  expect(head.headers.count("content-length") <= 1 && head.headers.count("transfer-encoding") <= 1);
  expect(!(head.headers.get("content-length") && head.headers.get("transfer-encoding")));
  expect(head.target == "*" || head.target.starts_with('/'));
  for (size_t i = 0; i < head.headers.size(); ++i) {
    expect(valid_field_value(head.headers.value(i)) && valid_field_value(head.headers.name(i)));
  }
}

void check_chunks(std::string_view text, size_t cut) {
  ChunkScanner whole(ChunkScanner::Extensions::skip), split(ChunkScanner::Extensions::skip);
  std::string payload, pieces;
  const auto at_once = whole.scan(text, &payload);
  const auto first = split.scan(text.substr(0, cut), &pieces);
  if (!first.ok()) return expect(!at_once.ok());
  const auto second = split.scan(text.substr(*first), &pieces);
  expect(at_once.ok() == second.ok());
  if (!at_once.ok()) return;
  expect(*at_once == *first + *second && whole.done() == split.done() && payload == pieces);
}

// Addresses come from the admin port and from bootstrap answers.
void check_url(std::string_view text) {
  const auto url = parse_url(text);
  if (!url.ok()) return;
  const auto again = parse_url(url->to_string());
  expect(again.ok() && again->host == url->host && again->port == url->port && again->path == url->path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_request(text);
  (void)parse_response_head(text, false);
  check_url(text.substr(0, text.find('\n')));
  if (size > 0) check_chunks(text.substr(1), data[0] % size);
  return 0;
}
