#include <dlfcn.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>

#include "engine/engine.h"
#include "test/support/cuda_device.h"

// kvf-gpu-bench: what this machine's GPUs and the CUDA memory kind move, as rows of a table for docs/performance.md.

namespace kvferry::test {
namespace {

using cuda::Context;
using cuda::ContextScope;
using cuda::CudaMemory;
using cuda::DevicePointer;
using cuda::Gather;

struct Plan {
  size_t bytes = size_t{256} << 20;
  size_t block = size_t{16} << 10;
  int rounds = 5;
};

// The best of a few rounds: what is in the way on a shared machine only ever slows one down.
double best_rate(const Plan& plan, size_t bytes, const std::function<void()>& work) {
  const SystemClock clock;
  double best = 0;
  for (int round = 0; round <= plan.rounds; ++round) {  // the first warms up
    const TimePoint begin = clock.now();
    work();
    const double rate = static_cast<double>(bytes) / seconds(clock.now() - begin) / 1e9;
    if (round > 0) best = std::max(best, rate);
  }
  return best;
}

void row(const char* what, const std::string& how, double rate) {
  std::cout << fmt::format("| {} | {} | {:.2f} |\n", what, how, rate) << std::flush;
}

void raw_copies(const Plan& plan, CudaDevice& device) {
  std::byte* const from = device.allocate(plan.bytes);
  std::byte* const to = device.allocate(plan.bytes);
  using Peer = cuda::Code (*)(DevicePointer, Context, DevicePointer, Context, size_t);
  using Wait = cuda::Code (*)();
  const auto copy_peer = driver_symbol<Peer>("cuMemcpyPeer");
  const auto wait = driver_symbol<Wait>("cuCtxSynchronize");
  const double rate = best_rate(plan, plan.bytes, [&] {
    const ContextScope scope(device.driver(), device.context_of(to));
    const auto code = copy_peer(reinterpret_cast<DevicePointer>(to), device.context_of(to),
                                reinterpret_cast<DevicePointer>(from), device.context_of(from), plan.bytes);
    KVF_CHECK(code == cuda::kSuccess && wait() == cuda::kSuccess);
  });
  row("from GPU to GPU", "cuMemcpyPeer", rate);
}

// What staging costs alone: blocks that lie apart, to and from pinned memory.
void gathering(const Plan& plan, CudaDevice& device, Gather gather) {
  CudaMemory kind({cuda_driver(), gather, test_kernel()});
  constexpr size_t kChunk = size_t{1} << 20;  // as the fabric tcp cuts it
  std::byte* const memory = device.allocate(2 * kChunk);
  KVF_CHECK(kind.check(memory, 2 * kChunk).ok());
  std::byte* const staging = kind.allocate_staging(kChunk);
  KVF_CHECK(staging != nullptr);
  std::vector<CopySpan> spans;
  for (size_t at = 0; at < kChunk; at += plan.block) spans.push_back({memory + 2 * at, staging + at, plan.block});
  for (const CopyDirection direction : {CopyDirection::to_host, CopyDirection::to_device}) {
    const double rate = best_rate(plan, 16 * kChunk, [&] {
      for (int i = 0; i < 16; ++i) {
        const auto id = kind.start_copy(direction, spans);
        KVF_CHECK(id.ok());
        while (true) {
          const auto done = kind.copy_done(*id);
          KVF_CHECK(done.ok());
          if (*done) break;
        }
      }
    });
    row(direction == CopyDirection::to_host ? "blocks from a GPU to staging" : "blocks from staging to a GPU",
        std::string(to_string(gather)), rate);
  }
  kind.free_staging(staging, kChunk);
  std::cerr << to_string(gather) << ": " << kind.describe() << "\n";
}

void transfers(const Plan& plan, CudaDevice& device) {
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<std::byte*> memory;
  std::vector<Region> regions;
  for (const char* name : {"reader", "owner"}) {
    EngineConfig config;
    config.engine_id = name;
    config.fabrics = {"tcp"};
    config.cuda_driver = cuda_driver();
    config.missed_heartbeats = 60;  // a machine that stands still ends no session
    engines.push_back(std::move(Engine::create(config)).value());
    memory.push_back(device.allocate(2 * plan.bytes));
    regions.push_back(
        std::move(engines.back()->register_memory(memory.back(), 2 * plan.bytes, MemoryKind::cuda, kRemoteReadWrite))
            .value());
  }
  const PeerRef peer = std::move(engines[0]->peer(engines[1]->address())).value();
  for (const bool scattered : {false, true}) {
    TransferRequest request;
    request.peer = peer;
    const size_t piece = scattered ? plan.block : plan.bytes;
    for (size_t at = 0; at < plan.bytes; at += piece)
      request.pairs.push_back({memory[0] + 2 * at, regions[1].id(), scattered ? 2 * at : at, piece});
    const double rate = best_rate(plan, plan.bytes, [&] {
      const Outcome outcome = engines[0]->transfer(request);
      KVF_CHECK(outcome.status.ok());
    });
    row(scattered ? "read of blocks, GPU to GPU" : "read of one span, GPU to GPU", "tcp on one host", rate);
  }
}

int run(int argc, char** argv) {
  CLI::App app("What the CUDA memory kind moves on this machine, in GB/s");
  Plan plan;
  app.add_option("--bytes", plan.bytes, "of the large transfers");
  app.add_option("--block", plan.block, "of the small blocks")->check(CLI::Range(16, 65536));
  app.add_option("--rounds", plan.rounds, "of which the best counts")->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  const auto loaded = cuda::Driver::load(cuda_driver());
  if (!loaded) {
    std::cerr << "skipped: " << loaded.error().to_string() << "\n";
    return 77;
  }
  CudaDevice device;
  std::cout << "| what | how | GB/s |\n|---|---|---|\n";
  raw_copies(plan, device);
  for (const Gather gather : {Gather::kernel, Gather::batch, Gather::single}) gathering(plan, device, gather);
  transfers(plan, device);
  return 0;
}

}  // namespace
}  // namespace kvferry::test

int main(int argc, char** argv) {
  return kvferry::test::run(argc, argv);
}
