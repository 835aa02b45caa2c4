#include <dlfcn.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "common/config.h"
#include "engine/engine.h"
#include "test/support/cuda_device.h"
#include "test/support/process.h"

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

// What a NIC's link can do, beside which transfers by it are put.
void line_rates() {
  std::error_code error;
  for (const auto& nic : std::filesystem::directory_iterator("/sys/class/infiniband", error))
    for (const auto& port : std::filesystem::directory_iterator(nic.path() / "ports", error)) {
      double gigabits = 0;
      if (std::ifstream(port.path() / "rate") >> gigabits)
        row("line rate", nic.path().filename().string() + ":" + port.path().filename().string(), gigabits / 8);
    }
}

// With the environment's settings: of UCX, of libfabric, and where the device is.
Result<std::unique_ptr<Engine>> try_engine(const char* name, const char* fabric) {
  auto config = EngineConfig::from_environment(Environment::of_process());
  if (!config.ok()) return std::move(config).error();
  config->engine_id = name;
  config->fabrics = {fabric};
  config->cuda_driver = cuda_driver();
  config->missed_heartbeats = 60;  // a machine that stands still ends no session
  return Engine::create(*config);
}
std::unique_ptr<Engine> make_engine(const char* name, const char* fabric) {
  return std::move(try_engine(name, fabric)).value();
}

// Reads of a region that has twice the bytes, by the one fabric that the reader has.
Status reads(const Plan& plan, CudaDevice& device, const char* fabric, const std::string& owner, RegionId region) {
  auto reader = try_engine("reader", fabric);
  if (!reader.ok()) return std::move(reader).error();
  std::byte* const memory = device.allocate(2 * plan.bytes);
  const auto landing = (*reader)->register_memory(memory, 2 * plan.bytes, MemoryKind::cuda, kPrivate);
  if (!landing.ok()) return landing.error();
  auto peer = (*reader)->peer(owner);
  if (!peer.ok()) return std::move(peer).error();
  for (const bool scattered : {false, true}) {
    TransferRequest request;
    request.peer = *peer;
    const size_t piece = scattered ? plan.block : plan.bytes;
    for (size_t at = 0; at < plan.bytes; at += piece)
      request.pairs.push_back({memory + 2 * at, region, scattered ? 2 * at : at, piece});
    Status status;
    const double rate = best_rate(plan, plan.bytes, [&] {
      if (status.ok()) status = (*reader)->transfer(request).status;
    });
    if (!status.ok()) return status;
    row(scattered ? "read of blocks, GPU to GPU" : "read of one span, GPU to GPU", std::string(fabric) + " on one host",
        rate);
  }
  return {};
}

void reads_by_tcp(const Plan& plan, CudaDevice& device) {
  const auto owner = make_engine("owner", "tcp");
  const Region region = std::move(owner->register_memory(device.allocate(2 * plan.bytes), 2 * plan.bytes,
                                                         MemoryKind::cuda, kRemoteReadWrite))
                            .value();
  KVF_CHECK(reads(plan, device, "tcp", owner->address(), region.id()).ok());
}

// CUDA does not open a process's own handles: the owner is another one.
void reads_by_local(const Plan& plan, CudaDevice& device) {
  Process owner = std::move(Process::spawn(KVF_TEST_GPU_OWNER, {std::to_string(4 * plan.bytes)})).value();
  std::istringstream ready(std::move(owner.read_line_with("ready ", std::chrono::seconds(120))).value());
  std::string word, address;
  RegionId region = 0;
  ready >> word >> address >> region;
  KVF_CHECK(reads(plan, device, "local", address, region).ok());
}

// By a device, where there is one that reaches GPUs: beside the line rates. What is in the way is said on standard
// error.
void reads_by_device(const Plan& plan, CudaDevice& device, const char* fabric) {
  const auto skipped = [fabric](const std::string& why) { std::cerr << fabric << ": not measured: " << why << "\n"; };
  auto owner = try_engine("owner", fabric);
  if (!owner.ok()) return skipped(owner.error().to_string());
  const auto region =
      (*owner)->register_memory(device.allocate(2 * plan.bytes), 2 * plan.bytes, MemoryKind::cuda, kRemoteReadWrite);
  if (!region.ok()) return skipped(region.error().to_string());
  // Alone, the fabric refuses memory that its library does not take.
  const std::string described = (*owner)->describe(), refusal = std::string("not by ") + fabric;
  if (const size_t at = described.find(refusal); at != std::string::npos)
    return skipped(described.substr(at, described.find("\",", at) - at));
  const Status status = reads(plan, device, fabric, (*owner)->address(), region->id());
  if (!status.ok()) skipped(status.error().to_string());
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
  line_rates();
  reads_by_tcp(plan, device);
  reads_by_local(plan, device);
  for (const char* fabric : {"ucx", "ofi"}) reads_by_device(plan, device, fabric);
  return 0;
}

}  // namespace
}  // namespace kvferry::test

int main(int argc, char** argv) {
  return kvferry::test::run(argc, argv);
}
