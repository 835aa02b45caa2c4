#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kvferry::proxy {

// What a decoder says in a stream of the Responses API before its engine has the request: vLLM sends response.created
// and response.in_progress at once, and only what follows them tells anything of the KV. Reads an event stream that may
// be cut anywhere; keeps the beginning of one line. Pure.
class Prelude {
 public:
  enum class Heard {
    nothing,  // yet, of the engine
    answer,   // an event that comes out of it
    failure,  // as the first word from there
  };
  // What comes next of the stream, without framing. Not to be asked again after something was heard.
  Heard read(std::string_view bytes);

 private:
  Heard judge(std::string_view line);

  static constexpr size_t kKept = 64;  // longer than any line that is told from others
  std::string line_;                   // its first kKept bytes
  bool named_ = false;                 // the event in progress has told its name
};

}  // namespace kvferry::proxy
