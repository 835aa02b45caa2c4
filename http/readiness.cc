#include "http/readiness.h"

#include <sys/socket.h>

#include <boost/asio/detail/reactor.hpp>
#include <boost/asio/detail/reactor_op.hpp>
#include <boost/asio/detail/scheduler.hpp>
#include <boost/asio/version.hpp>
#include <cerrno>

#include "common/check.h"

namespace kvferry::http {

namespace asio = boost::asio;
namespace internal = boost::asio::detail;
using boost::system::error_code;

static_assert(BOOST_ASIO_VERSION == 102600, "read asio's epoll_reactor again: see Readiness::Core");

// Two operations lie in the descriptor's queues of asio's epoll_reactor until the socket is closed. The reactor calls
// perform() of the first operation of a queue for each event of its kind; `not_done` leaves it there. An error or a
// hangup calls those of the exceptional queue too. Closing the socket completes both; ending the loop destroys them.
struct Readiness::Core {
  struct Watch : internal::reactor_op {
    Watch(Core& core_in, perform_func_type look) : reactor_op(error_code(), look, &Core::ended), core(core_in) {}
    Core& core;
  };
  struct Wake : internal::scheduler_operation {
    explicit Wake(Core& core_in) : scheduler_operation(&Core::woken), core(core_in) {}
    Core& core;
  };

  explicit Core(asio::execution_context& loop)
      : reactor(asio::use_service<internal::reactor>(loop)), scheduler(asio::use_service<internal::scheduler>(loop)) {}

  static internal::reactor_op::status on_input(internal::reactor_op* op) {
    Core& core = static_cast<Watch*>(op)->core;
    if (core.watching) core.note();
    return internal::reactor_op::not_done;
  }
  static internal::reactor_op::status on_hangup(internal::reactor_op* op) {
    Core& core = static_cast<Watch*>(op)->core;
    if (core.watching) {
      core.hung_up = true;
      core.note();
    }
    return internal::reactor_op::not_done;
  }
  static void ended(void* owner, internal::scheduler_operation* op, const error_code&, size_t) {
    Core& core = static_cast<Watch*>(static_cast<internal::reactor_op*>(op))->core;
    core.closed = true;
    core.finish(owner != nullptr);
  }
  static void woken(void* owner, internal::scheduler_operation* op, const error_code&, size_t) {
    Core& core = static_cast<Wake*>(op)->core;
    core.posted = false;
    core.finish(owner != nullptr);
  }

  void note() {
    readable = true;
    if (waiter) post();
  }
  void post() {
    if (posted) return;
    posted = true;
    ++users;
    scheduler.post_immediate_completion(&wake, false);
  }
  // A use by asio has ended; the waiter goes on, or goes with its loop.
  void finish(bool alive) {
    auto last = std::move(waiter);
    if (last && alive) {
      Waiter& who = *last;
      who.resume(std::move(last));
    }
    last.reset();
    unref();
  }
  void unref() {
    if (--users == 0) delete this;
  }

  internal::reactor& reactor;
  internal::scheduler& scheduler;
  Watch input{*this, &Core::on_input};
  Watch hangup{*this, &Core::on_hangup};
  Wake wake{*this};
  std::unique_ptr<Waiter> waiter;
  int users = 1;  // the Readiness, and each operation that asio holds
  bool watching = false;
  bool readable = false;
  bool hung_up = false;
  bool closed = false;
  bool posted = false;
};

Readiness::Readiness(Socket& socket) : core_(new Core(asio::query(socket.get_executor(), asio::execution::context))) {
  const auto start = [&](int kind, internal::reactor_op& op) {
    ++core_->users;
    core_->reactor.start_op(kind, socket.native_handle(), socket.reactor_data(), &op, false, true);
  };
  start(internal::reactor::read_op, core_->input);
  start(internal::reactor::except_op, core_->hangup);
  core_->watching = true;
  // What came before is not told again.
  char byte = 0;
  const ssize_t waiting = ::recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  core_->readable = waiting >= 0 || errno != EAGAIN;
}

Readiness::~Readiness() {
  core_->watching = false;
  core_->waiter.reset();
  core_->unref();
}

bool Readiness::readable() const {
  return core_->readable;
}

void Readiness::received(bool more) {
  core_->readable = more || core_->hung_up;
}

void Readiness::drained() {
  core_->readable = core_->hung_up = false;
}

void Readiness::wait(std::unique_ptr<Waiter> waiter) {
  KVF_CHECK(!core_->waiter);
  core_->waiter = std::move(waiter);
  if (core_->readable || core_->closed) core_->post();
}

}  // namespace kvferry::http
