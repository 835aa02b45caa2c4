#include "proxy/breaker.h"

#include <algorithm>

namespace kvferry::proxy {

Breaker::State Breaker::state(TimePoint now) const {
  if (!open_) return State::closed;
  return now < until_ ? State::open : State::half_open;
}

void Breaker::succeeded() {
  *this = Breaker();
}

void Breaker::failed(TimePoint now, bool hard) {
  trial_ = false;
  ++failures_;
  if (open_ && now < until_) return;
  if (!open_ && !hard && failures_ < kThreshold) return;
  span_ = open_ ? std::min(span_ * 2, kLongestOpen) : kFirstOpen;
  open_ = true;
  until_ = after(now, span_);
}

std::string_view to_string(Breaker::State state) {
  switch (state) {
    case Breaker::State::closed:
      return "closed";
    case Breaker::State::half_open:
      return "half_open";
    case Breaker::State::open:
      return "open";
  }
  return "unknown";
}

}  // namespace kvferry::proxy
