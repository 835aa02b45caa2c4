#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvferry::http {

// ASCII case-insensitive, as field names are.
bool iequals(std::string_view left, std::string_view right);

// Header fields in the order they came. Names and values share one string, so a message costs two allocations; views
// handed out end with the next change.
class Headers {
 public:
  void add(std::string_view name, std::string_view value);
  // Replaces every field of that name by this one.
  void set(std::string_view name, std::string_view value);
  void erase(std::string_view name);
  // All of them; what they took stays for the next.
  void clear() {
    text_.clear();
    slots_.clear();
  }

  // The first of that name.
  std::optional<std::string_view> get(std::string_view name) const;
  size_t count(std::string_view name) const;

  size_t size() const { return slots_.size(); }
  std::string_view name(size_t index) const { return view(slots_[index].name_at, slots_[index].name_size); }
  std::string_view value(size_t index) const { return view(slots_[index].value_at, slots_[index].value_size); }

 private:
  struct Slot {
    uint32_t name_at, name_size, value_at, value_size;
  };
  std::string_view view(uint32_t at, uint32_t size) const { return std::string_view(text_).substr(at, size); }

  std::string text_;
  std::vector<Slot> slots_;
};

// Of one head, and of the trailers of one body; the options in the Connection fields of a head are no more either. What
// is done for each field then costs little, however they were made.
constexpr size_t kMaxFields = 128;

// Which fields belong to one connection and must not be forwarded: the fixed list of RFC 9110 7.6.1 and what the
// message's own Connection fields name. Views the headers, which must stay as they are.
class HopByHop {
 public:
  explicit HopByHop(const Headers& headers);
  bool covers(std::string_view name) const;

 private:
  std::vector<std::string_view> named_;  // by Connection
};

// How the end of a body is known.
enum class Framing { none, length, chunked, until_close };

struct RequestHead {
  std::string method;
  std::string target;  // origin form ("/path?query") or "*"
  int minor_version = 1;
  Headers headers;
  Framing framing = Framing::none;  // none, length or chunked
  uint64_t content_length = 0;
  bool keep_alive = true;
  bool expects_continue = false;

  std::string_view path() const { return std::string_view(target).substr(0, target.find('?')); }
  // The value of ?name=value, undecoded.
  std::optional<std::string_view> query(std::string_view name) const;
};

struct Request : RequestHead {
  std::string body;    // whole; its capacity exceeds its size by kBodyPadding
  std::string remote;  // address of the other side, without the port

  // For the next request on the connection; what a small one took stays.
  void clear(size_t most_kept);
};

// simdjson reads this far behind the end.
constexpr size_t kBodyPadding = 64;

struct ResponseHead {
  int status = 0;
  std::string reason;
  int minor_version = 1;
  Headers headers;
  Framing framing = Framing::none;
  uint64_t content_length = 0;
  bool keep_alive = true;
};

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;  // further ones; never the framing ones
};

std::string_view reason_phrase(int status);

// Appends "HTTP/1.1 <status> <reason>\r\n".
void append_status_line(std::string& out, int status, std::string_view reason = {});
void append_field(std::string& out, std::string_view name, std::string_view value);
void append_number(std::string& out, uint64_t number);

// True when the text may stand in a header value (no CR, LF, NUL or other control characters but tab).
bool valid_field_value(std::string_view text);

}  // namespace kvferry::http
