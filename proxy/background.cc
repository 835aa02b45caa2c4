#include "proxy/background.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <utility>

namespace kvferry::proxy {

namespace asio = boost::asio;

void Background::run(asio::awaitable<void> work) {
  ++running_;
  asio::co_spawn(loop_, std::move(work), [this](const std::exception_ptr& broken) {
    --running_;
    if (broken) std::rethrow_exception(broken);
  });
}

asio::awaitable<bool> Background::sleep(Duration span) {
  if (ending_) co_return false;
  asio::steady_timer timer(loop_);
  timer.expires_after(span);
  asleep_.insert(&timer);
  co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  asleep_.erase(&timer);
  co_return !ending_;
}

void Background::end() {
  ending_ = true;
  for (asio::steady_timer* timer : asleep_) timer->cancel();
}

}  // namespace kvferry::proxy
