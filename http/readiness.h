#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <memory>

namespace kvferry::http {

// Tells when a socket has become readable. Internal to http/.
//
// asio's own async_wait makes a system call to arm epoll for each wait. This stays with asio's reactor for as long as
// the socket is open, remembers what epoll has told, and costs a wait nothing but its wake-up. It uses asio's
// internals, which a check in readiness.cc ties to the version that they were read in. On the loop.
class Readiness {
 public:
  // A socket that lets itself be watched.
  class Socket : public boost::asio::ip::tcp::socket {
   public:
    using Base = boost::asio::ip::tcp::socket;
    explicit Socket(Base socket) : Base(std::move(socket)) {}

   private:
    friend class Readiness;
    auto& reactor_data() { return impl_.get_implementation().reactor_data_; }
  };

  // Who waits. Destroyed without a resume() when the loop ends first.
  class Waiter {
   public:
    virtual ~Waiter() = default;
    // `self` is this one, to be waited with again, or to be dropped.
    virtual void resume(std::unique_ptr<Waiter> self) = 0;
  };

  // REQUIRES: the socket outlives it, and nothing else of asio reads from it or waits to.
  explicit Readiness(Socket& socket);
  ~Readiness();
  Readiness(const Readiness&) = delete;
  Readiness& operator=(const Readiness&) = delete;

  // Whether a receive may find something: bytes, the end or an error. False is certain as of the loop's last turn.
  bool readable() const;
  // After a receive that found something: whether the socket holds more. One that was hung up may hold its end.
  void received(bool more);
  // After a receive that found nothing.
  void drained();

  // Resumes the waiter from the loop when readable() holds, or the socket was closed. One waits at a time.
  void wait(std::unique_ptr<Waiter> waiter);

 private:
  struct Core;
  Core* const core_;
};

}  // namespace kvferry::http
