#include "proxy/admission.h"

namespace kvferry::proxy {

boost::asio::awaitable<Admission::Verdict> Admission::enter() {
  if (limits_.max_running > 0 && running_ >= limits_.max_running) {
    if (waiting_.size() >= limits_.max_waiting) co_return Verdict::full;
    const auto waiter = std::make_shared<Waiter>();
    waiting_.push_back(waiter);
    metrics_.queued.set(static_cast<int64_t>(waiting_.size()));
    http::Deadline limit(deadlines_, [waiter] { waiter->woken.set(); });
    limit.set_in(limits_.max_wait);
    co_await waiter->woken.wait();
    if (!waiter->admitted) {
      std::erase(waiting_, waiter);
      metrics_.queued.set(static_cast<int64_t>(waiting_.size()));
      co_return Verdict::waited_too_long;
    }
    co_return Verdict::admitted;  // leave() handed its place over
  }
  ++running_;
  metrics_.in_flight.set(static_cast<int64_t>(running_));
  co_return Verdict::admitted;
}

void Admission::leave() {
  if (!waiting_.empty()) {
    const auto next = waiting_.front();
    waiting_.pop_front();
    metrics_.queued.set(static_cast<int64_t>(waiting_.size()));
    next->admitted = true;
    next->woken.set();
    return;
  }
  --running_;
  metrics_.in_flight.set(static_cast<int64_t>(running_));
}

}  // namespace kvferry::proxy
