#include "http/parser.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace kvferry::http {
namespace {

// Characters of methods and of fields' names (RFC 9110, 5.6.2).
constexpr std::array<bool, 256> kToken = [] {
  std::array<bool, 256> token{};
  for (const char c : std::string_view("!#$%&'*+-.^_`|~")) token[static_cast<uint8_t>(c)] = true;
  for (char c = '0'; c <= '9'; ++c) token[static_cast<uint8_t>(c)] = true;
  for (char c = 'a'; c <= 'z'; ++c) token[static_cast<uint8_t>(c)] = true;
  for (char c = 'A'; c <= 'Z'; ++c) token[static_cast<uint8_t>(c)] = true;
  return token;
}();

bool is_token(std::string_view text) {
  const auto in_token = [](char c) { return kToken[static_cast<uint8_t>(c)]; };
  return !text.empty() && std::all_of(text.begin(), text.end(), in_token);
}

std::string_view without_white_space(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Takes the first line off `head`, without its end. REQUIRES: line_fault() has found nothing.
std::string_view take_line(std::string_view& head) {
  const size_t end = std::min(head.find('\r'), head.size());
  const std::string_view line = head.substr(0, end);
  head.remove_prefix(std::min(end + 2, head.size()));
  return line;
}

// The lines behind the first one, up to and with the empty one.
std::optional<HeadError> read_fields(std::string_view lines, Headers& out) {
  for (;;) {
    if (lines.empty()) return HeadError{400, "the head has no end"};
    const std::string_view line = take_line(lines);
    if (line.empty()) break;
    const size_t colon = std::min(line.find(':'), line.size());
    if (colon == line.size() || !is_token(line.substr(0, colon))) {
      return HeadError{400, "a line of the head is no field"};
    }
    if (out.size() == kMaxFields) return HeadError{431, "the head has too many fields"};
    out.add(line.substr(0, colon), without_white_space(line.substr(colon + 1)));
  }
  if (!lines.empty()) return HeadError{400, "something follows the head"};
  return std::nullopt;
}

// "HTTP/1.0" or "HTTP/1.1"; -1: another version.
int minor_of(std::string_view version) {
  if (version == "HTTP/1.1") return 1;
  return version == "HTTP/1.0" ? 0 : -1;
}

std::optional<HeadError> read_request_line(std::string_view line, RequestHead& out) {
  const size_t first = std::min(line.find(' '), line.size());
  const size_t last = std::min(line.rfind(' '), line.size());
  if (first >= last) return HeadError{400, "malformed request line"};
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!is_token(method) || target.find_first_of(" \t") != std::string_view::npos || !version.starts_with("HTTP/")) {
    return HeadError{400, "malformed request line"};
  }
  if (minor_of(version) < 0) return HeadError{505, "unknown HTTP version"};
  out.method = method;
  out.target = target;
  out.minor_version = minor_of(version);
  return std::nullopt;
}

const char* read_status_line(std::string_view line, ResponseHead& out) {
  constexpr size_t kVersion = 8, kStatus = 3;  // "HTTP/1.1 200 OK": digits, and one space before and behind them
  if (line.size() < kVersion + 1 + kStatus || line[kVersion] != ' ') return "malformed status line";
  out.minor_version = minor_of(line.substr(0, kVersion));
  if (out.minor_version < 0) return "unknown HTTP version";
  for (const char c : line.substr(kVersion + 1, kStatus)) {
    if (c < '0' || c > '9') return "malformed status line";
    out.status = out.status * 10 + (c - '0');
  }
  line.remove_prefix(kVersion + 1 + kStatus);
  if (out.status < 100 || (!line.empty() && line.front() != ' ')) return "malformed status line";
  if (!line.empty()) out.reason = line.substr(1);
  return nullptr;
}

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
  size_t options = 0;  // of the connection
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
      found.options += 1 + static_cast<size_t>(std::count(value.begin(), value.end(), ','));
      if (found.options > kMaxFields) found.fault = "Connection has too many options";
      found.close = found.close || lists(value, "close");
      found.keep_alive = found.keep_alive || lists(value, "keep-alive");
    }
    if (found.fault) return found;
  }
  if (found.chunked && found.length) found.fault = "both Content-Length and Transfer-Encoding";
  if (found.chunked && minor_version == 0) found.fault = "Transfer-Encoding in HTTP/1.0";
  return found;
}

const char* request_fault(const RequestHead& head) {
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
  if (auto fault = read_request_line(take_line(head), out)) return fault;
  if (auto fault = read_fields(head, out.headers)) return fault;
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
  if (const char* fault = read_status_line(take_line(head), out)) return fail(fault);
  if (auto fault = read_fields(head, out.headers)) return fail(std::move(fault->message));
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
