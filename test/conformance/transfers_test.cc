#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "test/support/engines.h"

// What every fabric must do for every pair of memory kinds; a fabric is done when this suite passes.

namespace kvferry::test {
namespace {

struct Case {
  const char* fabric;
  MemoryKind initiator;
  MemoryKind owner;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.fabric << " " << to_string(c.initiator) << " to " << to_string(c.owner);
}

class Conformance : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    initiator_ = make_engine("initiator");
    owner_ = make_engine("owner");
    peer_ = must(initiator_->peer(owner_->address()));
  }

  std::unique_ptr<Engine> make_engine(const std::string& name) {
    EngineConfig config;
    config.engine_id = name;
    config.fabrics = {GetParam().fabric};
    return must(Engine::create(config, {device_}));
  }

  Buffer make_buffer(MemoryKind kind, size_t bytes) {
    return Buffer(kind == MemoryKind::fake ? device_ : nullptr, bytes);
  }

  // Both sides' memory, registered; the owner's open for reads and writes.
  void make_memory(size_t bytes) {
    local_.emplace(make_buffer(GetParam().initiator, bytes));
    remote_.emplace(make_buffer(GetParam().owner, bytes));
    local_->store(pattern(bytes, 1));
    remote_->store(pattern(bytes, 2));
    local_region_ = must(initiator_->register_memory(local_->base(), bytes, local_->kind(), kPrivate));
    remote_region_ = must(owner_->register_memory(remote_->base(), bytes, remote_->kind(), kRemoteReadWrite));
  }

  Pair pair(uint64_t local, uint64_t remote, uint64_t length) {
    return {local_->base() + local, remote_region_.id(), remote, length};
  }

  Outcome run(Operation operation, std::vector<Pair> pairs) {
    TransferRequest request;
    request.peer = peer_;
    request.operation = operation;
    request.pairs = std::move(pairs);
    return initiator_->transfer(std::move(request));
  }

  // Runs the pairs and compares both memories with what a plain loop makes of them.
  void check(Operation operation, const std::vector<Pair>& pairs) {
    std::vector<std::byte> ours = local_->load();
    std::vector<std::byte> theirs = remote_->load();
    for (const Pair& p : pairs) {
      const auto at = static_cast<size_t>(p.local - local_->base());
      if (operation == Operation::read)
        std::memcpy(ours.data() + at, theirs.data() + p.offset, p.length);
      else
        std::memcpy(theirs.data() + p.offset, ours.data() + at, p.length);
    }
    const Outcome outcome = run(operation, pairs);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(outcome.fabric, GetParam().fabric);
    EXPECT_TRUE(local_->load() == ours);
    EXPECT_TRUE(remote_->load() == theirs);
  }

  std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  std::unique_ptr<Engine> initiator_;
  std::unique_ptr<Engine> owner_;
  PeerRef peer_;
  std::optional<Buffer> local_;
  std::optional<Buffer> remote_;
  Region local_region_;
  Region remote_region_;
};

TEST_P(Conformance, MovesOneSpanOfEverySize) {
  make_memory(size_t{8} << 20);
  for (const size_t size : {size_t{1}, size_t{7}, size_t{4095}, size_t{4096}, size_t{65537}, (size_t{1} << 20) + 1,
                            (size_t{8} << 20) - 13}) {
    SCOPED_TRACE(size);
    check(Operation::read, {pair(5, 11, size)});
    check(Operation::write, {pair(13, 3, size)});
  }
}

INSTANTIATE_TEST_SUITE_P(All, Conformance,
                         ::testing::Values(Case{"tcp", MemoryKind::host, MemoryKind::host},
                                           Case{"tcp", MemoryKind::fake, MemoryKind::host},
                                           Case{"tcp", MemoryKind::host, MemoryKind::fake},
                                           Case{"tcp", MemoryKind::fake, MemoryKind::fake},
                                           Case{"local", MemoryKind::host, MemoryKind::host}));

}  // namespace
}  // namespace kvferry::test
