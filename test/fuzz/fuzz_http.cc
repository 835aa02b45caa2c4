// Heads and chunked framing: no crash, the same end however the bytes are split, and no head that two readers could
// understand differently.

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "http/chunked.h"
#include "http/parser.h"
#include "http/url.h"

namespace {

using namespace kvferry::http;

void expect(bool good) {
  if (!good) std::abort();
}

// Beast's parser agrees: it accepts what ours does, and finds the same fields.
template <bool is_request>
void expect_same(std::string_view text, const Headers& headers) {
  namespace beast = boost::beast;
  beast::http::parser<is_request, beast::http::empty_body> parser;
  parser.header_limit(UINT32_MAX);
  parser.body_limit(boost::none);  // nobody reads the body here
  beast::error_code error;
  parser.put(boost::asio::const_buffer(text.data(), text.size()), error);
  if (error == beast::http::error::bad_value) return;  // it also reads what is in Connection and Upgrade
  expect(!error && parser.is_header_done());
  using Field = std::pair<std::string_view, std::string_view>;
  std::vector<Field> theirs, ours;  // in order: Beast moves fields of one name together
  for (const auto& field : parser.get().base()) {
    const auto name = field.name_string(), value = field.value();
    theirs.emplace_back(Field({name.data(), name.size()}, {value.data(), value.size()}));
  }
  for (size_t i = 0; i < headers.size(); ++i) ours.emplace_back(headers.name(i), headers.value(i));
  std::sort(theirs.begin(), theirs.end());
  std::sort(ours.begin(), ours.end());
  expect(theirs == ours);
}

void check_response(std::string_view text) {
  size_t scanned = 0;
  const auto end = find_head_end(text, scanned);
  if (!end) return;
  const auto head = parse_response_head(text.substr(0, *end), false);
  if (!head.ok()) return;
  expect(head->status >= 100 && head->status < 1000);
  // Beast insists on the space before a reason that is not there.
  constexpr size_t kReason = std::string_view("HTTP/1.1 200").size();
  std::string same(text.substr(0, *end));
  if (same.compare(kReason, 2, "\r\n") == 0) same.insert(kReason, " ");
  expect_same<false>(same, head->headers);
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
  expect_same<true>(text.substr(0, *end), head.headers);
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
  check_response(text);
  check_url(text.substr(0, text.find('\n')));
  if (size > 0) check_chunks(text.substr(1), data[0] % size);
  return 0;
}
