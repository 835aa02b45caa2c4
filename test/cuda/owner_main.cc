#include <fmt/format.h>

#include <cstdio>
#include <iostream>
#include <string>

#include "test/support/cuda_device.h"
#include "test/support/engines.h"

// kvf-test-gpu-owner BYTES: a process that owns GPU memory of the fake driver: one allocation, whose halves are two
// regions. It says where, then does what it is told line by line, and answers each.

namespace kvferry::test {
namespace {

int run(size_t bytes) {
  CudaDevice device;
  device.allocate(1);  // the other GPU is the reader's
  std::byte* const memory = device.allocate(bytes);
  device.store(memory, pattern(bytes, 5).data(), bytes);
  EngineConfig config;
  config.engine_id = "gpu-owner";
  config.fabrics = {"local", "tcp"};
  config.heartbeat = std::chrono::milliseconds(200);
  config.missed_heartbeats = 300;  // a machine that stands still is no dead peer
  auto engine = must(Engine::create(config, {device.ops()}));
  std::vector<Region> regions;
  for (const size_t half : {size_t{0}, bytes / 2})
    regions.push_back(must(engine->register_memory(memory + half, bytes / 2, MemoryKind::cuda, kRemoteReadWrite)));
  std::cout << fmt::format("ready {} {} {}", engine->address(), regions[0].id(), regions[1].id()) << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::vector<std::byte> held(bytes);
    if (line == "sum") {
      device.load(held.data(), memory, bytes);
      uint64_t sum = 0;
      for (const std::byte byte : held) sum = sum * 31 + static_cast<uint64_t>(byte);
      std::cout << "sum " << sum << std::endl;
    } else {
      const Status status = regions[line == "unregister 0" ? 0 : 1].unregister(std::chrono::seconds(60));
      std::cout << "unregistered " << (status.ok() ? "ok" : status.error().to_string()) << std::endl;
    }
  }
  return 0;
}

}  // namespace
}  // namespace kvferry::test

int main(int argc, char** argv) {
  return argc == 2 ? kvferry::test::run(std::stoul(argv[1])) : 2;
}
