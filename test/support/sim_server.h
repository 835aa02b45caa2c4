#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/serving.h"
#include "test/support/sim_kv_exchange.h"
#include "test/support/sim_support.h"

namespace kvferry::sim {

class FakeClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  void advance(Duration span) { now_ += span; }

 private:
  TimePoint now_{std::chrono::hours(1)};
};

struct Answer {
  std::vector<Token> tokens;
  std::vector<float> logprobs;
  std::string text;
  std::optional<GenerationEnd> end;
};

// A model with its serving core, driven by the test.
class TestServer {
 public:
  TestServer(const ModelConfig& model, size_t tp, KvExchange* exchange, const Clock& clock, ServingConfig config = {},
             size_t blocks = 128)
      : model_(make_model(model, tp, blocks)), transfer_(exchange ? exchange->connect(*model_) : nullptr) {
    config.scheduler.blocks = blocks;
    config.scheduler.block_size = model.block_size;
    config.scheduler.max_model_len = model.max_model_len;
    auto serving = Serving::create(config, *model_, clock, transfer_.get());
    KVF_CHECK(serving.ok());
    serving_ = std::move(serving).value();
  }

  // The answer fills while the server steps.
  std::shared_ptr<Answer> submit(GenerationRequest request, GenerationId* id = nullptr) {
    auto answer = std::make_shared<Answer>();
    const GenerationId given = serving_->submit(std::move(request), [answer](const GenerationUpdate& update) {
      KVF_CHECK(!answer->end.has_value());
      if (update.token) {
        answer->tokens.push_back(update.token->token);
        answer->logprobs.push_back(update.token->logprob);
      }
      answer->text += update.text;
      answer->end = update.end;
    });
    if (id != nullptr) *id = given;
    return answer;
  }

  void run() {
    while (serving_->step_on_loop()) {
    }
  }

  Serving& serving() { return *serving_; }
  Model& model() { return *model_; }
  SchedulerStats stats() const { return serving_->stats(); }

 private:
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvTransfer> transfer_;
  std::unique_ptr<Serving> serving_;
};

inline GenerationRequest greedy_request(std::string_view prompt, size_t tokens) {
  GenerationRequest request;
  request.prompt = encode(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = 0;
  return request;
}

// The two legs that a proxy makes of a request.
inline GenerationRequest prefill_leg(GenerationRequest request, const std::string& transfer_id) {
  request.role = KvRole::produce;
  request.transfer.transfer_id = transfer_id;
  request.sampling.max_tokens = 1;
  return request;
}
inline GenerationRequest decode_leg(GenerationRequest request, const std::string& transfer_id) {
  request.role = KvRole::consume;
  request.transfer = {transfer_id, "http://127.0.0.1:8998", "prefiller"};
  return request;
}

}  // namespace kvferry::sim
