#pragma once

#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace kvferry::proxy {

// Reading and changing the top level of a JSON object in its raw text: a body of 1 MiB keeps its bytes, its key order
// and its number formats, and costs a scan instead of a parse and a print.

struct Member {
  std::string_view name;   // unescaped
  std::string_view value;  // raw text without white space around it
  size_t begin = 0;        // of the name's opening quote
  size_t end = 0;          // behind the value
};

// The members of one object, in order, repeated names included. Views point into the text that was scanned (and into
// this object, for names with escapes), which must stay where it is.
struct Members {
  std::string_view text;
  size_t open_brace = 0;
  std::vector<Member> all;
  std::list<std::string> unescaped_names;  // each stays where it is; costs nothing while there is none

  // The last of that name: the one that readers of JSON agree to use.
  const Member* find(std::string_view name) const;
};

// Of one object; no request to a server of models has more than some dozens.
constexpr size_t kMaxMembers = 1000;

// Finds members; keeps simdjson's buffers from call to call. One per event loop.
class Scanner {
 public:
  Scanner();
  ~Scanner();

  // REQUIRES: text.capacity() >= text.size() + 64 (http::kBodyPadding). Fails if the text is not one JSON object, or
  // has more than kMaxMembers members; what lies inside of its values is not checked: the text is passed on as it is,
  // and the backend judges it.
  Result<Members> scan(const std::string& text);

 private:
  struct Parser;
  std::unique_ptr<Parser> parser_;
};

// A changed object: the pieces, in order, are its text. They view `front`, `tail` and the scanned text.
struct Spliced {
  std::string front;
  std::vector<std::string_view> rest;
  size_t size = 0;

  std::string joined() const;
};

// Takes out every member whose name is in `removed` and puts `inserted` ("\"name\":value,...", or empty) behind the
// opening brace. All other bytes stay.
Spliced splice(const Members& members, std::span<const std::string_view> removed, std::string_view inserted);

}  // namespace kvferry::proxy
