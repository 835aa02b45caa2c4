#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "test/support/engines.h"
#include "test/support/sanitized.h"
#include "test/support/stopwatch.h"

namespace kvferry::test {

// An honest pair of engines that goes on with its transfers while somebody misbehaves at the owner's port.
class Bystanders {
 public:
  static constexpr size_t kBytes = size_t{1} << 20;

  // What the others may have to wait on a busy machine while somebody misbehaves.
  static constexpr Duration kBearable = std::chrono::seconds(kSlower);

  // And what nearly all of their transfers may take.
  static constexpr Duration kUsual = std::chrono::milliseconds(250) * kSlower;

  // `change` has the last word about the owner's config. `missed_heartbeats`, `logger`: the initiator's.
  explicit Bystanders(const AuthConfig& auth = {}, const std::function<void(EngineConfig&)>& change = {},
                      int missed_heartbeats = kPatient, std::shared_ptr<Logger> logger = make_null_logger())
      : ours_(kBytes), theirs_(kBytes) {
    const auto with_auth = [&](const std::string& name) {
      EngineConfig made = config(name);
      made.auth = auth;
      return made;
    };
    EngineConfig owner = with_auth("owner");
    if (change) change(owner);
    owner_ = must(Engine::create(owner));
    EngineConfig honest = with_auth("honest");
    honest.missed_heartbeats = missed_heartbeats;
    honest.logger = std::move(logger);
    initiator_ = must(Engine::create(honest));
    our_region_ = must(initiator_->register_memory(ours_.data(), kBytes, MemoryKind::host, kPrivate));
    small_region_ = must(initiator_->register_memory(small_.data(), small_.size(), MemoryKind::host, kPrivate));
    their_region_ = must(owner_->register_memory(theirs_.data(), kBytes, MemoryKind::host, kRemoteReadWrite));
    peer_ = must(initiator_->peer(owner_->address()));
  }
  // A machine that stands still for seconds ends no session: those spoken by hand, which send no heartbeats, live for
  // half a minute.
  static constexpr int kPatient = 100;
  static EngineConfig config(const std::string& name) {
    EngineConfig config;
    config.engine_id = name;
    config.fabrics = {"tcp"};
    config.heartbeat = std::chrono::milliseconds(300);
    config.missed_heartbeats = kPatient;
    config.connect_timeout = std::chrono::seconds(10);
    config.logger = make_null_logger();
    return config;
  }

  Engine& owner() { return *owner_; }
  Engine& initiator() { return *initiator_; }
  const Region& region() const { return their_region_; }
  std::vector<std::byte>& theirs() { return theirs_; }
  std::vector<std::byte>& ours() { return ours_; }

  TransferRequest request(Operation operation) {
    TransferRequest made;
    made.peer = peer_;
    made.operation = operation;
    made.pairs = {{ours_.data(), their_region_.id(), 0, kBytes}};
    made.timeout = std::chrono::seconds(20);
    return made;
  }
  void expect_work() {
    const std::vector<std::byte> wanted = pattern(kBytes, ++round_);
    std::copy(wanted.begin(), wanted.end(), ours_.begin());
    const Outcome wrote = initiator_->transfer(request(Operation::write));
    ASSERT_TRUE(wrote.status.ok()) << wrote.status.error().to_string();
    const Outcome read = initiator_->transfer(request(Operation::read));
    ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
    ASSERT_TRUE(ours_ == wanted);
  }
  // The longest of `count` small notifications' round trips, as far as the machine did not stand still.
  Duration longest_wait(int count) {
    const SystemClock clock;
    const Stopwatch watch;
    Duration longest{0};
    for (int i = 0; i < count; ++i) {
      const Duration before = watch.seen_standing_still();
      const TimePoint began = clock.now();
      const Status status = must(initiator_->notify(peer_, {"n", "x"})).wait().status;
      const Duration took = clock.now() - began;
      if (!status.ok()) {  // an impatient owner may take a machine that stands still for a death
        EXPECT_GT(watch.stood_still() - before, std::chrono::milliseconds(200)) << status.error().to_string();
      }
      if (took > longest) longest = std::max(longest, took - (watch.stood_still() - before));
      static_cast<void>(owner_->notifications());
    }
    return longest;
  }

  // How reads of 64 KiB fared, without the time in which the machine stood still.
  struct Service {
    size_t count = 0;
    Duration median{0}, p99{0}, longest{0};
    void print(const char* meanwhile) const {
      const auto ms = [](Duration span) { return static_cast<double>(span.count()) / 1e6; };
      std::printf("%s: %zu reads of others took %.2f ms, 99 of 100 at most %.2f ms, the longest %.2f ms\n", meanwhile,
                  count, ms(median), ms(p99), ms(longest));
    }
  };
  // One after the other, until `attack` has ended in a thread of its own, and 200 of them at least.
  Service service_during(const std::function<void()>& attack) {
    const SystemClock clock;
    const Stopwatch watch;
    std::atomic<bool> over{false};
    std::thread attacker([&] {
      attack();
      over.store(true);
    });
    std::vector<Duration> took;
    while (!over.load() || took.size() < 200 / kSlower) {
      const Duration before = watch.seen_standing_still();
      const TimePoint began = clock.now();
      TransferRequest asked = request(Operation::read);
      asked.pairs = {{small_.data(), their_region_.id(), 0, small_.size()}};
      const Outcome outcome = initiator_->transfer(asked);
      Duration one = clock.now() - began;
      EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
      if (one > std::chrono::milliseconds(50)) one = std::max(Duration(0), one - (watch.stood_still() - before));
      took.push_back(one);
    }
    attacker.join();
    std::sort(took.begin(), took.end());
    return {took.size(), took[took.size() / 2], took[took.size() * 99 / 100], took.back()};
  }

 private:
  std::vector<std::byte> ours_;
  std::vector<std::byte> theirs_;
  std::vector<std::byte> small_ = std::vector<std::byte>(size_t{64} << 10);
  std::unique_ptr<Engine> owner_;
  std::unique_ptr<Engine> initiator_;
  Region our_region_;
  Region small_region_;
  Region their_region_;
  PeerRef peer_;
  uint64_t round_ = 0;
};

}  // namespace kvferry::test
