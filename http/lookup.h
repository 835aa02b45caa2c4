#pragma once

#include <atomic>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/fd.h"
#include "common/result.h"

namespace kvferry::http {

// Where a host is; the ports are 0.
using Endpoints = std::vector<boost::asio::ip::tcp::endpoint>;

// Finds a host by its name and takes as long as it likes. Called from any thread.
using Resolve = std::function<Result<Endpoints>(const std::string& host)>;

// One name that is being looked up, on a thread that is nobody's: whoever asked may leave at any time, and so may the
// loop. Internal to http/.
class Lookup {
 public:
  explicit Lookup(EventFd done) : done_(std::move(done)) {}

  // On the thread.
  void run(const Resolve& resolve, const std::string& host);
  // A descriptor that becomes readable when the answer is there.
  Result<UniqueFd> watch() const;
  Result<Endpoints> answer() const;

 private:
  const EventFd done_;
  std::atomic<bool> answered_ = false;
  Result<Endpoints> answer_ = Endpoints{};  // the thread's until `answered_`
};

// The lookups of one loop. The system's resolver knows no deadline, and asio's waits for it on one thread, which holds
// up all other names and the loop's end. Here each name has a thread while it is looked up, which all who ask for that
// name share: there are no more threads than names, and no more than 64; further names wait. On the loop.
class Lookups final : public boost::asio::execution_context::service {
 public:
  using key_type = Lookups;
  static boost::asio::execution_context::id id;

  explicit Lookups(boost::asio::execution_context& loop);

  // In place of the system's resolver.
  void resolve_by(Resolve resolve) { resolve_ = std::move(resolve); }
  Result<std::shared_ptr<Lookup>> find(const std::string& host);

 private:
  // Names that wait for a thread, which outlives the loop; one that nobody waits for any more is passed over.
  struct Queue {
    std::mutex mutex;
    std::deque<std::pair<std::string, std::weak_ptr<Lookup>>> waiting;  // GUARDED_BY(mutex)
    size_t threads = 0;                                                 // GUARDED_BY(mutex)
  };
  void shutdown() noexcept override {}
  static void work(Queue& queue, const Resolve& resolve);
  Status start_thread();

  Resolve resolve_;
  const std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  std::unordered_map<std::string, std::weak_ptr<Lookup>> going_on_;
};

}  // namespace kvferry::http
