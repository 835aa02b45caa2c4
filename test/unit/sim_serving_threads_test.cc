#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "test/support/sim_server.h"

namespace kvferry::sim {
namespace {

// A Serving driven as a server drives it: one thread in the loop, others submitting and aborting.
class LoopThread {
 public:
  explicit LoopThread(Serving& serving) : serving_(serving), thread_([this] { run(); }) {}
  ~LoopThread() {
    stop_.store(true);
    serving_.abort_all();  // any task wakes it
    thread_.join();
  }

 private:
  void run() {
    while (!stop_.load()) {
      if (!serving_.step_on_loop()) serving_.wait_on_loop(kNever);
    }
  }
  Serving& serving_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST(SimServingThreads, ClientsInManyThreadsGetTheirOwnAnswers) {
  const SystemClock clock;
  TestServer single(small_config(), 1, nullptr, clock);
  TestServer server(small_config(), 2, nullptr, clock, {.scheduler = {.max_sequences = 6, .max_batched_tokens = 32}});
  SeededRandom random(4);
  constexpr size_t kClients = 4;
  constexpr size_t kEach = 5;
  std::vector<GenerationRequest> requests;
  std::vector<std::shared_ptr<Answer>> expected;
  for (size_t i = 0; i < kClients * kEach; ++i) {
    requests.push_back(greedy_request(random_text(random, 10 + 3 * i), 6));
    expected.push_back(single.submit(requests.back()));
  }
  single.run();
  const LoopThread loop(server.serving());
  std::vector<std::vector<Token>> answers(requests.size());
  std::vector<std::thread> clients;
  for (size_t client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (size_t i = client * kEach; i < (client + 1) * kEach; ++i) {
        std::promise<void> done;
        const GenerationId id = server.serving().submit(requests[i], [&, i](const GenerationUpdate& update) {
          if (update.token) answers[i].push_back(update.token->token);
          if (update.end) done.set_value();
        });
        if (i % kEach == 4) server.serving().abort(id);
        ASSERT_EQ(done.get_future().wait_for(std::chrono::seconds(120)), std::future_status::ready);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % kEach == 4) {  // aborted somewhere: what came is a beginning of the answer
      ASSERT_LE(answers[i].size(), expected[i]->tokens.size());
      EXPECT_TRUE(std::equal(answers[i].begin(), answers[i].end(), expected[i]->tokens.begin()));
    } else {
      EXPECT_EQ(answers[i], expected[i]->tokens);
    }
  }
}

TEST(SimServingThreads, CallbacksOfATransferMayOutliveTheServer) {
  const SystemClock clock;
  KvExchange exchange;
  auto server = std::make_unique<TestServer>(small_config(), 1, &exchange, clock);
  const GenerationRequest request = greedy_request("some prompt", 3);
  server->submit(prefill_leg(request, "x"));
  server->run();
  EXPECT_EQ(exchange.published(), 1u);
  server.reset();
  exchange.expire_all();  // its callback finds nobody
  EXPECT_EQ(exchange.published(), 0u);
}

}  // namespace
}  // namespace kvferry::sim
