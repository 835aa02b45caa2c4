#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>

#include "common/clock.h"

namespace kvferry::http {

class Deadline;

// The timeouts of one event loop, looked at every kTick: arming one is two pointer writes, so each read and write can
// afford it. Must outlive its Deadlines; everything happens on the loop.
class Deadlines {
 public:
  static constexpr Duration kTick = std::chrono::milliseconds(50);

  Deadlines(boost::asio::io_context& loop, const Clock& clock);
  ~Deadlines();
  Deadlines(const Deadlines&) = delete;
  Deadlines& operator=(const Deadlines&) = delete;

  TimePoint now() const { return clock_.now(); }
  // Runs what is due; the timer calls it, tests may.
  void sweep();

 private:
  friend class Deadline;
  struct Link {
    Link* previous = this;
    Link* next = this;
    bool alone() const { return next == this; }
    void unlink();
    void link_before(Link& other);
  };
  void start();

  const Clock& clock_;
  boost::asio::steady_timer timer_;
  bool ticking_ = false;
  Link armed_;
};

// Calls `expired` once when its time has come (up to a tick late), unless it is moved or cleared before. `expired` may
// destroy this and other Deadlines.
class Deadline : private Deadlines::Link {
 public:
  Deadline(Deadlines& owner, std::function<void()> expired) : owner_(owner), expired_(std::move(expired)) {}
  ~Deadline() { unlink(); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  void set(TimePoint at);
  void set_in(Duration span) { set(after(owner_.now(), span)); }
  void clear() { unlink(); }
  // What is to happen some time after its first cause is set only if it is not: setting it again moves it.
  bool armed() const { return !alone(); }

 private:
  friend class Deadlines;
  Deadlines& owner_;
  std::function<void()> expired_;
  TimePoint at_ = kNever;
};

}  // namespace kvferry::http
