#include "bootstrap/bench/restarts.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "common/clock.h"

namespace kvferry::bootstrap {
namespace {

constexpr Duration kPatience = std::chrono::seconds(10);

WorkerInfo worker_of(int life) {
  WorkerInfo info;
  info.instance_id = "life-" + std::to_string(life);
  info.engine_id = info.instance_id + "/0.0.0";
  info.incarnation = static_cast<uint64_t>(life) + 1;
  info.address = "127.0.0.1:7100";
  info.rank = {1, 0, 1, 0, 1, 0};
  return info;
}

// Until the one worker that a client sees is this life, asking every millisecond as a busy proxy does.
std::optional<Duration> seen_after(BlockingClient& client, const std::string& base, int life, TimePoint began) {
  const SystemClock clock;
  while (clock.now() - began < kPatience) {
    const auto workers = client.workers(base);
    if (workers.ok() && (*workers)->size() == 1 && (*workers)->front().engine_id == worker_of(life).instance_id)
      return clock.now() - began;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return std::nullopt;
}

void print(const char* name, std::vector<double>& ms) {
  std::sort(ms.begin(), ms.end());
  std::printf(R"("%s":{"p50_ms":%.1f,"max_ms":%.1f})", name, ms[ms.size() / 2], ms.back());
}

}  // namespace

int measure_restarts(int rounds) {
  const auto fail = [](const std::string& what) { return std::fprintf(stderr, "%s\n", what.c_str()), 1; };
  ServerSettings settings;
  settings.port = 0;
  settings.logger = make_null_logger();
  auto base = Server::create(settings);
  if (!base.ok()) return fail(base.error().to_string());
  settings.port = (*base)->port();
  ServerSettings own = settings;
  own.port = 0;
  own.keeps_directory = false;
  own.base_url = "http://127.0.0.1:" + std::to_string(settings.port);
  auto client = BlockingClient::create({});
  if (!client.ok()) return fail(client.error().to_string());

  const SystemClock clock;
  std::vector<double> worker_ms;
  std::vector<double> server_ms;
  std::unique_ptr<Server> worker;
  for (int life = 0; life <= rounds; ++life) {
    // The life before stays: a worker that was killed takes nothing back.
    auto next = Server::create(own);
    if (!next.ok()) return fail(next.error().to_string());
    const TimePoint began = clock.now();
    (*next)->set_worker(worker_of(life));
    const auto took = seen_after(**client, own.base_url, life, began);
    if (!took) return fail("a worker that restarted was not seen");
    if (life > 0) worker_ms.push_back(1e3 * seconds(*took));
    worker = std::move(*next);
  }
  for (int round = 0; round < rounds; ++round) {
    base->reset();
    base = Server::create(settings);
    if (!base.ok()) return fail(base.error().to_string());
    auto fresh = BlockingClient::create({});  // it has kept nothing from before
    if (!fresh.ok()) return fail(fresh.error().to_string());
    const auto took = seen_after(**fresh, own.base_url, rounds, clock.now());
    if (!took) return fail("the worker did not come back to the server that restarted");
    server_ms.push_back(1e3 * seconds(*took));
  }
  std::printf(R"({"rounds":%d,)", rounds);
  print("worker", worker_ms);
  std::printf(",");
  print("server", server_ms);
  std::printf("}\n");
  return 0;
}

}  // namespace kvferry::bootstrap
