#pragma once

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <utility>

#include "common/check.h"

namespace kvferry::http {

// Lets one coroutine sleep until another part of the same event loop wakes it. Everything of it happens on that loop.
// Destroying an Event destroys the sleeping coroutine.
class Event {
 public:
  // Returns at once if set() came before; takes the signal. REQUIRES: nobody waits already.
  boost::asio::awaitable<void> wait() {
    if (!std::exchange(set_, false)) {
      co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void()>(
          [this](auto handler) {
            KVF_CHECK(!waiter_);
            waiter_ = std::make_unique<WaiterOf<decltype(handler)>>(std::move(handler));
          },
          boost::asio::use_awaitable);
    }
  }

  // Wakes the waiter before it returns, or the next one when none waits.
  void set() {
    if (auto waiter = std::move(waiter_)) {
      waiter->resume();
    } else {
      set_ = true;
    }
  }
  void clear() { set_ = false; }
  bool waiting() const { return waiter_ != nullptr; }
  // Destroys the sleeping coroutine, if there is one.
  void drop() { auto waiter = std::move(waiter_); }

 private:
  struct Waiter {
    virtual ~Waiter() = default;
    virtual void resume() = 0;
  };
  template <class Handler>
  struct WaiterOf final : Waiter {
    explicit WaiterOf(Handler handler) : handler_(std::move(handler)) {}
    void resume() override {
      Handler handler = std::move(handler_);
      std::move(handler)();
    }
    Handler handler_;
  };

  std::unique_ptr<Waiter> waiter_;
  bool set_ = false;
};

}  // namespace kvferry::http
