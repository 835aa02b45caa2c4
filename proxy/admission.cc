#include "proxy/admission.h"

#include <boost/asio/post.hpp>

namespace kvferry::proxy {

boost::asio::awaitable<Admission::Verdict> Admission::enter(http::ResponseWriter& client) {
  if (limits_.max_running > 0 && running_ >= limits_.max_running) {
    if (waiting_.size() >= limits_.max_waiting) co_return Verdict::full;
    const auto waiter = std::make_shared<Waiter>();
    waiting_.push_back(waiter);
    show_queue();
    http::Deadline limit(deadlines_, [this, waiter] { wake(waiter); });
    limit.set_in(limits_.max_wait);
    client.on_gone([this, waiter] { wake(waiter); });
    co_await waiter->woken.wait();
    client.on_gone(nullptr);
    if (waiter->admitted) {  // leave() handed its place over
      if (!client.gone()) co_return Verdict::admitted;
      leave();
      co_return Verdict::left;
    }
    std::erase(waiting_, waiter);
    show_queue();
    co_return client.gone() ? Verdict::left : Verdict::waited_too_long;
  }
  ++running_;
  metrics_.in_flight.set(static_cast<int64_t>(running_));
  co_return Verdict::admitted;
}

void Admission::leave() {
  if (!waiting_.empty()) {
    const auto next = waiting_.front();
    waiting_.pop_front();
    show_queue();
    next->admitted = true;
    wake(next);
    return;
  }
  --running_;
  metrics_.in_flight.set(static_cast<int64_t>(running_));
}

void Admission::wake(std::shared_ptr<Waiter> waiter) {
  boost::asio::post(loop_, [waiter = std::move(waiter)] { waiter->woken.set(); });
}

void Admission::show_queue() {
  metrics_.queued.set(static_cast<int64_t>(waiting_.size()));
}

}  // namespace kvferry::proxy
