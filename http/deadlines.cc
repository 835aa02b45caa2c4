#include "http/deadlines.h"

namespace kvferry::http {

void Deadlines::Link::unlink() {
  previous->next = next;
  next->previous = previous;
  previous = next = this;
}

void Deadlines::Link::link_before(Link& other) {
  previous = other.previous;
  next = &other;
  other.previous->next = this;
  other.previous = this;
}

Deadlines::Deadlines(boost::asio::io_context& loop, const Clock& clock) : clock_(clock), timer_(loop) {}

Deadlines::~Deadlines() {
  while (!armed_.alone()) armed_.next->unlink();
}

void Deadlines::start() {
  if (ticking_) return;
  ticking_ = true;
  timer_.expires_after(kTick);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    ticking_ = false;
    sweep();
  });
}

void Deadlines::sweep() {
  const TimePoint now = clock_.now();
  Link current;  // what is still to be looked at: an `expired` may destroy any of it
  while (!armed_.alone()) {
    Link* link = armed_.next;
    link->unlink();
    link->link_before(current);
  }
  while (!current.alone()) {
    auto* deadline = static_cast<Deadline*>(current.next);
    deadline->unlink();
    if (deadline->at_ > now) {
      deadline->link_before(armed_);
      continue;
    }
    const auto expired = deadline->expired_;
    expired();
  }
  if (!armed_.alone()) start();
}

void Deadline::set(TimePoint at) {
  at_ = at;
  if (!alone()) return;
  link_before(owner_.armed_);
  owner_.start();
}

}  // namespace kvferry::http
