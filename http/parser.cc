#include "http/parser.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <cstring>

namespace kvferry::http {
namespace {

namespace beast = boost::beast;
using beast::error_code;

constexpr uint32_t kNoLimit = UINT32_MAX;  // the caller bounds the head before it gets here

// Collects a head from Beast's callbacks; bodies never reach it.
template <bool is_request, class Head>
class HeadParser final : public beast::http::basic_parser<is_request> {
 public:
  explicit HeadParser(Head& head) : head_(head) {
    this->header_limit(kNoLimit);
    this->body_limit(boost::none);
  }

 private:
  void on_request_impl(beast::http::verb, beast::string_view method, beast::string_view target, int version,
                       error_code&) override {
    if constexpr (is_request) {
      head_.method.assign(method.data(), method.size());
      head_.target.assign(target.data(), target.size());
      head_.minor_version = version - 10;
    }
  }
  void on_response_impl(int code, beast::string_view reason, int version, error_code&) override {
    if constexpr (!is_request) {
      head_.status = code;
      head_.reason.assign(reason.data(), reason.size());
      head_.minor_version = version - 10;
    }
  }
  void on_field_impl(beast::http::field, beast::string_view name, beast::string_view value, error_code&) override {
    head_.headers.add({name.data(), name.size()}, {value.data(), value.size()});
  }
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(beast::string_view body, error_code&) override { return body.size(); }
  void on_chunk_header_impl(uint64_t, beast::string_view, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, beast::string_view body, error_code&) override { return body.size(); }
  void on_finish_impl(error_code&) override {}

  Head& head_;
};

// What every conforming reader agrees on: lines end with CRLF, none is folded, no control characters. The first loop
// has no early end, so that it is done many bytes at a time.
const char* line_fault(std::string_view head) {
  uint8_t control = 0;
  uint32_t line_feeds = 0;
  for (const char c : head) {
    const auto byte = static_cast<uint8_t>(c);
    const bool usual = (byte >= 0x20) | (byte == '\t') | (byte == '\r') | (byte == '\n');
    control |= static_cast<uint8_t>(!usual | (byte == 0x7f));
    line_feeds += byte == '\n';
  }
  if (control != 0) return "control character in the head";
  uint32_t line_ends = 0;
  for (size_t at = head.find('\r'); at != std::string_view::npos; at = head.find('\r', at + 2)) {
    const std::string_view rest = head.substr(at);
    if (!rest.starts_with("\r\n")) return "bare CR in the head";
    if (rest.starts_with("\r\n ") || rest.starts_with("\r\n\t")) return "folded header line";
    ++line_ends;
  }
  return line_feeds == line_ends ? nullptr : "bare LF in the head";
}

struct FrameFields {
  const char* fault = nullptr;
  std::optional<uint64_t> length;
  bool chunked = false;
  bool close = false;
  bool keep_alive = false;
};

std::optional<uint64_t> parse_length(std::string_view text) {
  if (text.empty() || text.size() > 18) return std::nullopt;
  uint64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  return value;
}

bool lists(std::string_view value, std::string_view token) {
  for (size_t at = 0; at + token.size() <= value.size(); ++at) {
    if (!iequals(value.substr(at, token.size()), token)) continue;
    const bool starts = at == 0 || value[at - 1] == ',' || value[at - 1] == ' ';
    const size_t end = at + token.size();
    if (starts && (end == value.size() || value[end] == ',' || value[end] == ' ')) return true;
  }
  return false;
}

FrameFields read_frame_fields(const Headers& headers, int minor_version) {
  FrameFields found;
  for (size_t i = 0; i < headers.size(); ++i) {
    const std::string_view name = headers.name(i);
    const std::string_view value = headers.value(i);
    if (iequals(name, "content-length")) {
      if (found.length) found.fault = "more than one Content-Length";
      found.length = parse_length(value);
      if (!found.length) found.fault = "Content-Length is not a number";
    } else if (iequals(name, "transfer-encoding")) {
      if (found.chunked || !iequals(value, "chunked")) found.fault = "Transfer-Encoding is not just \"chunked\"";
      found.chunked = true;
    } else if (iequals(name, "connection")) {
      found.close = found.close || lists(value, "close");
      found.keep_alive = found.keep_alive || lists(value, "keep-alive");
    }
    if (found.fault) return found;
  }
  if (found.chunked && found.length) found.fault = "both Content-Length and Transfer-Encoding";
  if (found.chunked && minor_version == 0) found.fault = "Transfer-Encoding in HTTP/1.0";
  return found;
}

template <class Parser>
bool run(Parser& parser, std::string_view head, error_code& error) {
  parser.put(boost::asio::const_buffer(head.data(), head.size()), error);
  return !error && parser.is_header_done();
}

const char* request_fault(const RequestHead& head) {
  if (head.minor_version != 0 && head.minor_version != 1) return "unknown HTTP version";
  const size_t hosts = head.headers.count("host");
  if (hosts > 1 || (hosts == 0 && head.minor_version == 1)) return "exactly one Host header is needed";
  if (head.target.empty() || (head.target.front() != '/' && head.target != "*")) return "target must be a path";
  return nullptr;
}

}  // namespace

std::optional<size_t> find_head_end(std::string_view input, size_t& scanned) {
  const size_t from = scanned >= 3 ? scanned - 3 : 0;
  const size_t at = input.find("\r\n\r\n", from);
  scanned = input.size();
  if (at == std::string_view::npos) return std::nullopt;
  return at + 4;
}

std::optional<HeadError> parse_request_head(std::string_view head, RequestHead& out) {
  if (const char* fault = line_fault(head)) return HeadError{400, fault};
  HeadParser<true, RequestHead> parser(out);
  error_code error;
  if (!run(parser, head, error)) {
    if (error == beast::http::error::bad_version) return HeadError{505, "unknown HTTP version"};
    return HeadError{400, "malformed request: " + error.message()};
  }
  if (const char* fault = request_fault(out)) return HeadError{400, fault};
  const FrameFields fields = read_frame_fields(out.headers, out.minor_version);
  if (fields.fault) return HeadError{400, fields.fault};
  out.framing = fields.chunked ? Framing::chunked : fields.length ? Framing::length : Framing::none;
  out.content_length = fields.length.value_or(0);
  out.keep_alive = !fields.close && (out.minor_version == 1 || fields.keep_alive);
  if (const auto expect = out.headers.get("expect")) {
    if (!iequals(*expect, "100-continue")) return HeadError{417, "only Expect: 100-continue is known"};
    out.expects_continue = out.minor_version == 1;
  }
  return std::nullopt;
}

Result<ResponseHead> parse_response_head(std::string_view head, bool to_head) {
  const auto fail = [](std::string cause) {
    return Error{ErrorCode::protocol, "malformed response head", std::move(cause), "", ""};
  };
  if (const char* fault = line_fault(head)) return fail(fault);
  ResponseHead out;
  HeadParser<false, ResponseHead> parser(out);
  error_code error;
  if (!run(parser, head, error)) return fail(error.message());
  const FrameFields fields = read_frame_fields(out.headers, out.minor_version);
  if (fields.fault) return fail(fields.fault);
  const bool bodiless = to_head || out.status < 200 || out.status == 204 || out.status == 304;
  out.content_length = fields.length.value_or(0);
  out.framing = bodiless         ? Framing::none
                : fields.chunked ? Framing::chunked
                : fields.length  ? Framing::length
                                 : Framing::until_close;
  out.keep_alive =
      !fields.close && (out.minor_version == 1 || fields.keep_alive) && out.framing != Framing::until_close;
  return out;
}

}  // namespace kvferry::http
