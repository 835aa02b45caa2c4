#include "proxy/prelude.h"

#include <algorithm>
#include <array>

namespace kvferry::proxy {
namespace {

constexpr std::array<std::string_view, 3> kBeforeTheEngine = {"response.created", "response.queued",
                                                              "response.in_progress"};

}  // namespace

Prelude::Heard Prelude::read(std::string_view bytes) {
  for (;;) {
    const size_t end = bytes.find('\n');
    line_.append(bytes.substr(0, std::min(end, kKept - line_.size())));
    if (end == std::string_view::npos) return Heard::nothing;
    const Heard heard = judge(line_.ends_with('\r') ? std::string_view(line_).substr(0, line_.size() - 1) : line_);
    if (heard != Heard::nothing) return heard;
    line_.clear();
    bytes.remove_prefix(end + 1);
  }
}

Prelude::Heard Prelude::judge(std::string_view line) {
  constexpr std::string_view kEvent = "event:";
  if (line.empty()) named_ = false;
  if (line.starts_with(kEvent)) {
    named_ = true;
    line.remove_prefix(kEvent.size());
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (std::find(kBeforeTheEngine.begin(), kBeforeTheEngine.end(), line) != kBeforeTheEngine.end()) {
      return Heard::nothing;
    }
    return line == "error" || line == "response.failed" ? Heard::failure : Heard::answer;
  }
  if (named_ || !line.starts_with("data:")) return Heard::nothing;
  return line.starts_with("data: {\"error\"") ? Heard::failure : Heard::answer;
}

}  // namespace kvferry::proxy
