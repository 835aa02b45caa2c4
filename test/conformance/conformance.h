#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "common/config.h"
#include "engine/fabric/loopback/loopback.h"
#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"
#include "test/support/trial.h"

namespace kvferry::test {

// What every fabric must do for every pair of memory kinds; a fabric is done when this suite passes.
struct Case {
  const char* fabric;
  MemoryKind initiator;
  MemoryKind owner;
  AuthMode auth = AuthMode::open;
  const char* transports = "";  // of a plug-in
};

inline void PrintTo(const Case& c, std::ostream* out) {
  *out << c.fabric << " " << to_string(c.initiator) << " to " << to_string(c.owner) << " " << to_string(c.auth) << " "
       << c.transports;
}

inline std::vector<Case> all_cases() {
  constexpr MemoryKind kHost = MemoryKind::host;
  constexpr MemoryKind kFake = MemoryKind::fake;
  constexpr MemoryKind kCuda = MemoryKind::cuda;
  if (kSanitized)  // half as many: every fabric, every kind on either side and every way of proof are in it
    return {{"tcp", kHost, kHost},
            {"tcp", kFake, kHost, AuthMode::psk},
            {"tcp", kHost, kHost, AuthMode::mtls},
            {"tcp", kCuda, kCuda},
            {"local", kHost, kHost, AuthMode::psk},
            {"local", kCuda, kCuda},
            {"loopback", kHost, kFake},
            {"ucx", kHost, kHost, AuthMode::open, "posix,tcp,self"},
            {"ofi", kHost, kHost, AuthMode::open, "tcp"},
            {"ofi", kHost, kHost, AuthMode::open, kOfiSharedMemory.transports},
            {"ucx", kHost, kCuda, AuthMode::open, kNic.data()},
            {"ucx", kCuda, kHost, AuthMode::open, kNic.data()}};
  std::vector<Case> out = {{"tcp", kHost, kHost},
                           {"tcp", kFake, kHost},
                           {"tcp", kHost, kFake},
                           {"tcp", kFake, kFake},
                           {"tcp", kHost, kHost, AuthMode::psk},
                           {"tcp", kFake, kHost, AuthMode::psk},
                           {"tcp", kHost, kHost, AuthMode::mtls},
                           {"local", kHost, kHost},
                           {"local", kHost, kHost, AuthMode::psk},
                           {"loopback", kHost, kHost},
                           {"loopback", kHost, kFake},
                           {"tcp", kCuda, kHost},
                           {"tcp", kHost, kCuda},
                           {"tcp", kCuda, kCuda},
                           {"loopback", kHost, kCuda},
                           {"local", kCuda, kCuda}};
  for (const PluginCase& each : peaceful_plugin_cases())
    out.push_back({each.fabric, kHost, kHost, AuthMode::open, each.transports});
  if (has_rdma_device()) return out;
  for (const auto& [ours, theirs] : {std::pair(kCuda, kHost), std::pair(kHost, kCuda), std::pair(kCuda, kCuda)})
    out.push_back({"ucx", ours, theirs, AuthMode::open, kNic.data()});
  return out;
}

inline const auto kAllCases = ::testing::ValuesIn(all_cases());

inline std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.fabric) + "_" + std::string(to_string(info.param.initiator)) + "_" +
         std::string(to_string(info.param.owner)) + "_" + std::string(to_string(info.param.auth)) +
         name_of_transports(info.param.transports);
}

// The kind of a case's memory that is not the host's; one case has no two of them.
inline MemoryKind device_kind(const Case& c) {
  if (c.initiator != MemoryKind::host) return c.initiator;
  return c.owner != MemoryKind::host ? c.owner : MemoryKind::fake;
}

constexpr Operation kBoth[] = {Operation::read, Operation::write};

inline const char* name_of(Operation operation) {
  return operation == Operation::read ? "read" : "write";
}

// Sanitized code is several times slower and larger: scripts/test sets a limit there.
inline uint64_t largest_test_bytes() {
  auto limit = Environment::of_process().size("KVFERRY_TEST_MAX_BYTES", uint64_t{1} << 40);
  KVF_CHECK(limit.ok());
  return *limit;
}

// Two engines of the case's fabric, and memory of the case's kinds on both sides.
class Conformance : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_fabric(GetParam().fabric, GetParam().transports); !why.empty())
      GTEST_SKIP() << why;
    initiator_ = make_engine("initiator");
    owner_ = make_engine("owner");
    ASSERT_TRUE(initiator_ && owner_);
    peer_ = must(initiator_->peer(owner_->address()));
  }

  // A plug-in's fabric without a device: the owner's CPU moves the bytes, slowly.
  static bool emulated() { return GetParam().transports[0] != '\0' && !has_rdma_device(); }

  // `adjust` changes what is left at its default.
  std::unique_ptr<Engine> make_engine(const std::string& name,
                                      const std::function<void(EngineConfig&)>& adjust = nullptr) {
    EngineConfig config;
    config.engine_id = name;
    config.fabrics = {GetParam().fabric};
    config.auth = auth_of(GetParam().auth);
    config.loopback = hub_;
    use_transports(config, GetParam().fabric, GetParam().transports);
    use_shared_memory(config, GetParam().transports);
    config.cuda_driver = "no-such-driver.so";  // but for the cases that bring one
    config.missed_heartbeats = 60;             // nobody dies here: a machine may stand still for a while
    config.connect_timeout = std::chrono::seconds(30);
    if (adjust) adjust(config);
    auto engine = Engine::create(config, {device_->ops()});
    if (!engine.ok()) ADD_FAILURE() << engine.error().to_string();
    return engine.ok() ? std::move(engine).value() : nullptr;
  }

  void remake_initiator(const std::function<void(EngineConfig&)>& adjust) {
    local_region_ = Region();
    initiator_ = make_engine("initiator", adjust);
    peer_ = must(initiator_->peer(owner_->address()));
  }
  void remake_owner(const std::function<void(EngineConfig&)>& adjust) {
    remote_region_ = Region();
    owner_ = make_engine("owner", adjust);
    peer_ = must(initiator_->peer(owner_->address()));
  }

  Buffer make_buffer(MemoryKind kind, size_t bytes) {
    return Buffer(kind == MemoryKind::host ? nullptr : device_, bytes);
  }

  // Both sides' memory, registered; the owner's open for reads and writes.
  void make_memory(size_t bytes) {
    local_region_ = Region();
    remote_region_ = Region();
    local_.emplace(make_buffer(GetParam().initiator, bytes));
    remote_.emplace(make_buffer(GetParam().owner, bytes));
    local_->store(pattern(bytes, 1));
    remote_->store(pattern(bytes, 2));
    local_region_ = must(initiator_->register_memory(local_->base(), bytes, local_->kind(), kPrivate));
    remote_region_ = must(owner_->register_memory(remote_->base(), bytes, remote_->kind(), kRemoteReadWrite));
  }

  Pair pair(uint64_t local, uint64_t remote, uint64_t length) const {
    return {local_->base() + local, remote_region_.id(), remote, length};
  }

  TransferRequest request(Operation operation, std::vector<Pair> pairs) const {
    TransferRequest made;
    made.peer = peer_;
    made.operation = operation;
    made.pairs = std::move(pairs);
    return made;
  }

  Outcome run(Operation operation, std::vector<Pair> pairs) {
    return initiator_->transfer(request(operation, std::move(pairs)));
  }

  // Runs the pairs and compares both memories with what a plain loop makes of them.
  void check(Operation operation, const std::vector<Pair>& pairs) {
    std::vector<std::byte> ours = local_->load();
    std::vector<std::byte> theirs = remote_->load();
    uint64_t bytes = 0;
    for (const Pair& p : pairs) {
      const auto at = static_cast<size_t>(p.local - local_->base());
      bytes += p.length;
      if (operation == Operation::read)
        std::memcpy(ours.data() + at, theirs.data() + p.offset, p.length);
      else
        std::memcpy(theirs.data() + p.offset, ours.data() + at, p.length);
    }
    const Outcome outcome = run(operation, pairs);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(outcome.fabric, GetParam().fabric);
    EXPECT_EQ(outcome.bytes_done, bytes);
    EXPECT_TRUE(local_->holds(ours)) << "wrong bytes here";
    EXPECT_TRUE(remote_->holds(theirs)) << "wrong bytes at the owner";
  }

  // Expects that the transfer ends with `code` and a text that has all of `words`, and that no byte moved.
  void check_refused(TransferRequest asked, ErrorCode code, const std::vector<std::string>& words) {
    const std::vector<std::byte> ours = local_->load();
    const std::vector<std::byte> theirs = remote_->load();
    const Outcome outcome = initiator_->transfer(std::move(asked));
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_EQ(outcome.status.error().code, code) << outcome.status.error().to_string();
    for (const std::string& word : words)
      EXPECT_NE(outcome.status.error().to_string().find(word), std::string::npos)
          << "\"" << word << "\" is not in: " << outcome.status.error().to_string();
    EXPECT_EQ(outcome.bytes_done, 0u);
    EXPECT_TRUE(local_->holds(ours));
    EXPECT_TRUE(remote_->holds(theirs));
  }

  std::shared_ptr<loopback::Hub> hub_ = std::make_shared<loopback::Hub>();
  std::shared_ptr<TestDevice> device_ = make_device(device_kind(GetParam()));
  std::unique_ptr<Engine> initiator_;
  std::unique_ptr<Engine> owner_;
  PeerRef peer_;
  std::optional<Buffer> local_;
  std::optional<Buffer> remote_;
  Region local_region_;
  Region remote_region_;
};

}  // namespace kvferry::test
