#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvferry::sim {

// Turns the bytes of an answer into pieces of valid UTF-8 and finds stop strings in them, also across pieces. What may
// still become part of a character or of a stop string is held back.
class TextAssembler {
 public:
  explicit TextAssembler(std::vector<std::string> stop = {});

  // Text that is certain now. After a stop string was found there is none any more. `may_stop` false: stop strings that
  // end in these bytes do not count (min_tokens).
  std::string add(std::string_view bytes, bool may_stop = true);
  // The rest, at the end of the answer; bytes that never became a character are U+FFFD.
  std::string finish();

  bool stopped() const { return stopped_; }

 private:
  std::string take(size_t bytes);
  size_t held_back() const;

  std::vector<std::string> stop_;
  std::string bytes_;    // not yet a whole character
  std::string pending_;  // valid text, not given out yet
  bool stopped_ = false;
};

// Moves whole characters from the front of `bytes` to `text`; bytes that cannot be one become U+FFFD. With `all`, an
// unfinished character at the end too.
void take_characters(std::string& bytes, std::string& text, bool all);

}  // namespace kvferry::sim
