#include "bootstrap/fan_out.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>

#include "bootstrap/paths.h"
#include "http/client.h"

namespace kvferry::bootstrap {
namespace {

namespace asio = boost::asio;

// Shared by the coroutines that work it off; each takes the next target until none is left.
struct Job {
  Job(asio::io_context& loop, FanOut work_in)
      : work(std::move(work_in)), acknowledged(work.targets.size(), false), finished(loop) {}
  FanOut work;
  std::vector<bool> acknowledged;
  size_t next = 0;
  size_t running = 0;
  asio::steady_timer finished;  // cancelled when nobody runs any more
};

asio::awaitable<void> work_off(asio::io_context& loop, http::Deadlines& deadlines, std::shared_ptr<Job> job,
                               TimePoint deadline) {
  while (job->next < job->work.targets.size() && deadlines.now() < deadline) {
    const size_t mine = job->next++;
    http::Fetch fetch;
    fetch.method = "DELETE";
    fetch.url = job->work.targets[mine];
    fetch.target = "/v1/parcels/" + percent_encode(job->work.transfer_id) + "?scope=rank";
    if (job->work.force) fetch.target += "&force=1";
    if (!job->work.token.empty()) fetch.headers.add("Authorization", "Bearer " + job->work.token);
    fetch.timeout = deadline - deadlines.now();
    fetch.max_body_bytes = 64 << 10;
    fetch.trust = job->work.trust;
    const auto answer = co_await http::fetch(loop, deadlines, std::move(fetch));
    job->acknowledged[mine] = answer.ok() && answer->head.status == 200;
  }
  if (--job->running == 0) job->finished.cancel();
}

}  // namespace

asio::awaitable<std::vector<bool>> release_at_all(asio::io_context& loop, http::Deadlines& deadlines, FanOut work) {
  if (work.targets.empty()) co_return std::vector<bool>();
  const TimePoint deadline = after(deadlines.now(), work.limit);
  const auto job = std::make_shared<Job>(loop, std::move(work));
  job->running = std::min(job->work.at_once, job->work.targets.size());
  // The fetches end by the deadline themselves, give or take a tick.
  job->finished.expires_after(job->work.limit + 4 * http::Deadlines::kTick);
  for (size_t left = job->running; left > 0; --left) {
    asio::co_spawn(loop, work_off(loop, deadlines, job, deadline), asio::detached);
  }
  co_await job->finished.async_wait(asio::as_tuple(asio::use_awaitable));
  co_return job->acknowledged;
}

}  // namespace kvferry::bootstrap
