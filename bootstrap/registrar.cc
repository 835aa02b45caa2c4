#include "bootstrap/registrar.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "bootstrap/backoff.h"
#include "bootstrap/bodies.h"
#include "http/client.h"

namespace kvferry::bootstrap {

namespace asio = boost::asio;

struct Registrar::Task : std::enable_shared_from_this<Registrar::Task> {
  Task(asio::io_context& loop_in, http::Deadlines& deadlines_in, Random& random_in, Config config_in,
       std::function<void(State, const std::string&)> changed_in)
      : loop(loop_in),
        deadlines(deadlines_in),
        random(random_in),
        config(std::move(config_in)),
        changed(std::move(changed_in)),
        pause(loop_in) {}

  asio::awaitable<void> run();
  asio::awaitable<Duration> step(Backoff& backoff);
  asio::awaitable<Result<int>> ask(std::string method, std::string target, std::string body, Duration limit);
  WorkerName name() const { return {what.engine_id, what.rank, what.incarnation}; }
  void enter(State next, const std::string& why);

  asio::io_context& loop;
  http::Deadlines& deadlines;
  Random& random;
  const Config config;
  const std::function<void(State, const std::string&)> changed;
  asio::steady_timer pause;
  Registration what;
  TimePoint began{};
  State state = State::trying;
  bool told = false;  // `changed` was called with `state`
  bool dirty = true;  // `what` has changed since it was registered
  bool running = false;
  bool stopped = false;
};

void Registrar::Task::enter(State next, const std::string& why) {
  if (told && state == next) return;
  state = next;
  told = true;
  if (changed) changed(state, why);
}

asio::awaitable<Result<int>> Registrar::Task::ask(std::string method, std::string target, std::string body,
                                                  Duration limit) {
  http::Fetch fetch;
  fetch.method = std::move(method);
  fetch.url = config.base;
  fetch.target = std::move(target);
  fetch.body = std::move(body);
  fetch.timeout = limit;
  fetch.trust = config.trust;
  fetch.max_body_bytes = 64 << 10;
  fetch.headers.add("Content-Type", "application/json");
  if (!config.token.empty()) fetch.headers.add("Authorization", "Bearer " + config.token);
  const auto answer = co_await http::fetch(loop, deadlines, std::move(fetch));
  if (!answer.ok()) co_return answer.error();
  co_return answer->head.status;
}

// One request; returns how long to wait for the next.
asio::awaitable<Duration> Registrar::Task::step(Backoff& backoff) {
  const bool fresh = dirty || state != State::registered;
  dirty = false;
  Registration now = what;
  now.age = deadlines.now() - began;
  now.ttl = config.ttl;
  std::string target = fresh ? "/register" : "/heartbeat";
  std::string body = fresh ? format_registration(now) : format_worker_name(name());
  const auto status = co_await ask("POST", std::move(target), std::move(body), config.attempt);
  if (stopped) co_return Duration(0);
  if (status.ok() && *status == 200) {
    enter(State::registered, {});
    backoff.reset();
    co_return jittered(config.heartbeat, random);
  }
  if (!fresh && status.ok() && *status == 404) {
    enter(State::trying, "the server has forgotten this worker");
    co_return Duration(0);
  }
  if (status.ok() && *status == 409) {
    enter(State::superseded, "a process that started later has this rank");
    co_return jittered(config.ttl, random);
  }
  // A server that is away for less than the TTL has missed nothing: keep the state and come back soon.
  if (state != State::registered || !told) {
    enter(State::trying, status.ok() ? "the server answered " + std::to_string(*status) : status.error().to_string());
  }
  co_return backoff.next();
}

asio::awaitable<void> Registrar::Task::run() {
  const auto self = shared_from_this();
  Backoff backoff(config.first_retry, config.longest_retry, random);
  while (!stopped) {
    const Duration wait = co_await step(backoff);
    if (stopped) break;
    if (dirty) continue;
    pause.expires_after(wait);
    co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

Registrar::Registrar(asio::io_context& loop, http::Deadlines& deadlines, Random& random, Config config,
                     std::function<void(State, const std::string&)> changed)
    : task_(std::make_shared<Task>(loop, deadlines, random, std::move(config), std::move(changed))) {}

Registrar::~Registrar() {
  task_->stopped = true;
  task_->pause.cancel();
}

void Registrar::keep(const Registration& registration, TimePoint began) {
  task_->what = registration;
  task_->began = began;
  task_->dirty = true;
  task_->pause.cancel();
  if (std::exchange(task_->running, true)) return;
  asio::co_spawn(task_->loop, task_->run(), asio::detached);
}

asio::awaitable<void> Registrar::leave(Duration limit) {
  const auto task = task_;
  task->stopped = true;
  task->pause.cancel();
  if (!task->running) co_return;
  std::string body = format_worker_name(task->name());
  const auto status = co_await task->ask("DELETE", "/register", std::move(body), limit);
  static_cast<void>(status.ok());  // what is not taken back runs out
}

}  // namespace kvferry::bootstrap
