#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/bench/cases.h"
#include "engine/bench/crew.h"
#include "engine/bench/goals.h"
#include "engine/bench/pool.h"
#include "engine/bench/raw.h"
#include "engine/bench/remote.h"
#include "engine/bench/samples.h"
#include "engine/engine.h"

namespace kvferry::bench {

struct RunnerOptions {
  Duration time = std::chrono::seconds(1);  // for the product's samples of one case, about
  Duration handicap{0};                     // added to each of the product's samples: proves that the check can fail
  int burst = 4;                            // samples of one kind in a row, of small transfers
  bool verify = false;
};

// One measured case.
struct Row {
  Case tested;
  Samples product;
  Samples limit;
  Samples four_raw;
  Samples copied;                    // memcpy
  double gigabytes_per_second = 0;   // of all threads together
  std::optional<double> cpu_per_gb;  // seconds, both processes
  Medians medians() const { return {product.median(), limit.median(), four_raw.median()}; }
};

// Measures cases against one target: the product and its raw limits take turns over the same blocks of the same pools.
class Runner {
 public:
  static Result<std::unique_ptr<Runner>> create(Remote remote, RunnerOptions options);
  Result<Row> run(const Case& tested);
  const Remote& remote() const { return remote_; }

 private:
  struct Initiator {
    std::unique_ptr<Engine> engine;
    Region region;
    PeerRef peer;
  };
  // What one thread moves in one sample.
  struct Work {
    TransferRequest request;
    Vectors ours;
    Vectors theirs;  // addresses of the target
    Vectors mirror;  // the same places in this process
  };
  using Step = std::function<Status(int thread)>;

  Runner(Remote remote, RunnerOptions options) : remote_(std::move(remote)), options_(options) {}
  Result<Initiator*> initiator(const std::string& fabric);
  Status connect_raw(size_t connections);
  Status prepare(const Case& tested, Initiator& initiator);
  Status verify(const Case& tested, const Step& product);
  Step product_step(Engine& engine);
  Step limit_step(const Case& tested);
  // One sample by every thread of the crew, at once; the longest of them in microseconds.
  Result<double> sample(Crew& crew, const Step& step, Samples& samples);
  Status measure(Crew& crew, const Step& product, Row& row);

  Remote remote_;
  const RunnerOptions options_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Pool> mirror_;
  std::map<std::string, Initiator> initiators_;
  std::vector<UniqueFd> raw_;
  std::vector<Work> work_;
};

}  // namespace kvferry::bench
