#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "test/conformance/parcel_rank.h"
#include "test/support/eventually.h"

// What an owner's caller is told of its parcels' ends, through the completion descriptor: each once, in order.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
// "id why", one of each release.
using Told = std::vector<std::string>;

std::string line(const std::string& id, ReleaseReason why) {
  return fmt::format("{} {}", id, to_string(why));
}

std::string name(size_t number) {
  return fmt::format("t{}", number);
}

bool readable(int fd, Duration patience = Duration(0)) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, static_cast<int>(patience / milliseconds(1))) == 1;
}

// An event loop as a caller has one: it sleeps on the descriptor, and takes releases only when that says that some are
// there.
class Listener {
 public:
  Listener(Engine& engine, Parcels& parcels)
      : engine_(engine), parcels_(parcels), fd_(must(engine.completion_fd())), thread_([this] { run(); }) {}
  ~Listener() {
    over_ = true;
    thread_.join();
  }
  Told told() const {
    const std::lock_guard lock(mutex_);
    return told_;
  }
  bool hears(size_t count) const {
    return eventually([&] { return told().size() >= count; });
  }
  int fd() const { return fd_; }

 private:
  void run() {
    while (!over_) {
      if (!readable(fd_, milliseconds(20))) continue;
      const std::vector<uint64_t> news = engine_.take_completed();
      if (std::find(news.begin(), news.end(), kParcelReleased) == news.end()) continue;
      for (const ParcelReleased& released : parcels_.take_released()) {
        const std::lock_guard lock(mutex_);
        told_.push_back(line(released.transfer_id, released.why));
      }
    }
  }

  Engine& engine_;
  Parcels& parcels_;
  const int fd_;
  mutable std::mutex mutex_;
  Told told_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

class ParcelReleases : public ::testing::TestWithParam<const char*> {
 protected:
  RankOptions options(const std::string& name) { return {name, {GetParam()}, hub_, nullptr}; }

  ParcelSpec spec(const std::string& id, Duration lease = std::chrono::seconds(480)) {
    ParcelSpec out;
    out.transfer_id = id;
    out.tokens = 16;
    out.blocks = {{0, {3}}};
    out.fingerprint = "model";
    out.lease = lease;
    return out;
  }
  ParcelReadRequest request(const std::string& id) {
    ParcelReadRequest out;
    out.transfer_id = id;
    out.owners = {must(reader_.engine->peer(owner_.engine->address()))};
    out.group_instance_id = "decoder";
    out.fingerprint = "model";
    out.blocks = {{0, {9}}};
    out.timeout = std::chrono::seconds(40);
    return out;
  }
  void publish(const ParcelSpec& spec) {
    const Status status = owner_.parcels->publish(spec);
    ASSERT_TRUE(status.ok()) << status.error().to_string();
  }
  int64_t waiting_claims() {
    const std::string text = owner_.engine->metrics(), name = "\nkvferry_parcel_claims ";
    const size_t at = text.find(name);
    return at == std::string::npos ? -1 : std::stoll(text.substr(at + name.size()));
  }
  bool ends(const std::string& id) {
    return eventually([&] { return !owner_.parcels->status(id); });
  }

  // Publishes a parcel that ends in this way, and returns when it has.
  void end_by(ReleaseReason why, const std::string& id, uint64_t variant) {
    const bool odd = variant % 2 == 1;
    switch (why) {
      case ReleaseReason::settled:
        publish(spec(id));
        ASSERT_EQ(reader_.parcels->read_and_wait(request(id)).state, ReadState::accepted);
        break;
      case ReleaseReason::released:
        publish(spec(id));
        if (variant % 3 == 0)
          reader_.parcels->release_at(request(id).owners.front(), id, odd);
        else
          ASSERT_TRUE(owner_.parcels->release(id, odd));
        break;
      case ReleaseReason::expired:
        publish(spec(id, milliseconds(1)));
        break;
      case ReleaseReason::reader_failed: {
        publish(spec(id));
        ParcelReadRequest more = request(id);
        // Than the parcel covers, and with one block than the reader has room for: the owner refuses the stream, or the
        // reader gives up over the ticket.
        if (odd) more.blocks = {{0, {9, 10}}};
        more.end_token = 17;
        ASSERT_EQ(reader_.parcels->read_and_wait(more).state, ReadState::failed);
        break;
      }
      case ReleaseReason::aborted:
        owner_.parcels->release(id, odd);
        publish(spec(id));
        break;
      case ReleaseReason::shut_down:
        break;
    }
    ASSERT_TRUE(ends(id)) << to_string(why);
  }

  std::shared_ptr<loopback::Hub> hub_ = std::make_shared<loopback::Hub>();
  Rank owner_{options("owner"), 1};
  Rank reader_{options("reader"), 2};
};

constexpr ReleaseReason kReasons[] = {ReleaseReason::settled, ReleaseReason::released, ReleaseReason::expired,
                                      ReleaseReason::reader_failed, ReleaseReason::aborted};

TEST_P(ParcelReleases, AreToldOnceInTheOrderOfTheEndsWhateverTheCause) {
  Listener listener(*owner_.engine, *owner_.parcels);
  std::mt19937_64 random(7);
  Told expected;
  for (size_t i = 0; i < 400; ++i) {
    const std::string id = name(i);
    const ReleaseReason why = kReasons[random() % std::size(kReasons)];
    ASSERT_NO_FATAL_FAILURE(end_by(why, id, random()));
    expected.push_back(line(id, why));
  }
  ASSERT_TRUE(listener.hears(expected.size()));
  EXPECT_EQ(listener.told(), expected);
  EXPECT_TRUE(eventually([&] { return !readable(listener.fd()); }));
  EXPECT_TRUE(owner_.parcels->take_released().empty());
}

TEST_P(ParcelReleases, PileUpUntilTheyAreTakenAndWakeOnce) {
  const int fd = must(owner_.engine->completion_fd());
  for (int round = 0; round < 3; ++round) {
    EXPECT_FALSE(readable(fd));
    Told expected;
    for (size_t i = 0; i < 50; ++i) {
      const std::string id = fmt::format("{}/{}", round, i);
      const ReleaseReason why = kReasons[i % std::size(kReasons)];
      ASSERT_NO_FATAL_FAILURE(end_by(why, id, i));
      expected.push_back(line(id, why));
    }
    EXPECT_TRUE(readable(fd));
    EXPECT_EQ(owner_.engine->take_completed(), std::vector<uint64_t>{kParcelReleased});
    Told told;
    for (const ParcelReleased& released : owner_.parcels->take_released())
      told.push_back(line(released.transfer_id, released.why));
    EXPECT_EQ(told, expected);
    EXPECT_TRUE(owner_.parcels->take_released().empty());
  }
}

// A caller that asks for the descriptor late sleeps on it no less well.
TEST_P(ParcelReleases, ThatCameBeforeTheDescriptorWasAskedForAreToldToo) {
  ASSERT_NO_FATAL_FAILURE(end_by(ReleaseReason::released, "early", 1));
  ASSERT_NO_FATAL_FAILURE(end_by(ReleaseReason::released, "early as well", 1));
  Listener listener(*owner_.engine, *owner_.parcels);
  ASSERT_NO_FATAL_FAILURE(end_by(ReleaseReason::released, "late", 1));
  ASSERT_TRUE(listener.hears(3));
  EXPECT_EQ(listener.told(), (Told{"early released", "early as well released", "late released"}));
}

// A lease that ends, a reader that settles and two callers that release, all at once.
TEST_P(ParcelReleases, OfRacingCausesAreToldOnceEach) {
  Listener listener(*owner_.engine, *owner_.parcels);
  constexpr size_t kParcels = 300;
  std::atomic<size_t> published{0};
  const auto release_all = [&] {
    for (size_t i = 0; i < kParcels; ++i) {
      for (size_t seen = published; seen <= i; seen = published) published.wait(seen);
      owner_.parcels->release(name(i), true);
    }
  };
  std::thread first(release_all);
  std::thread second(release_all);
  std::mt19937_64 random(5);
  std::vector<ParcelReading> readings;
  for (size_t i = 0; i < kParcels; ++i) {
    ParcelReadRequest brief = request(name(i));
    brief.timeout = milliseconds(300);  // a claim that comes when the tombstone of such a lease is over waits for ever
    readings.push_back(must(reader_.parcels->read(std::move(brief))));
    publish(spec(name(i), milliseconds(1 + random() % 3)));
    published = i + 1;
    published.notify_all();
    if (i >= 32) static_cast<void>(readings[i - 32].wait());
  }
  first.join();
  second.join();
  ASSERT_TRUE(listener.hears(kParcels));
  for (const ParcelReading& reading : readings) static_cast<void>(reading.wait());
  std::set<std::string> ids;
  for (const std::string& told : listener.told()) ids.insert(told.substr(0, told.find(' ')));
  EXPECT_EQ(ids.size(), kParcels);
  EXPECT_EQ(listener.told().size(), kParcels);
  EXPECT_TRUE(eventually([&] { return !readable(listener.fd()); }));
}

// More than an owner serves at a time by one lane: they wait for each other, and none pays for the others.
TEST_P(ParcelReleases, OfVeryManyReadsAtOnceAreAllSettled) {
  constexpr size_t kParcels = 2500;
  std::vector<ParcelReading> readings;
  publish(spec("the layout becomes known by it"));
  ASSERT_EQ(reader_.parcels->read_and_wait(request("the layout becomes known by it")).state, ReadState::accepted);
  for (size_t i = 0; i < kParcels; ++i) {
    ParcelReadRequest one = request(name(i));
    one.end_token = 16;
    readings.push_back(must(reader_.parcels->read(std::move(one))));
  }
  // As many as the owner takes at once, 512 by each of two lanes; or all have been told that they are too many.
  ASSERT_TRUE(eventually([&] { return readings.front().done() || waiting_claims() >= 1024; }));
  for (size_t i = 0; i < kParcels; ++i) publish(spec(name(i)));
  for (const ParcelReading& reading : readings) {
    const ParcelReadOutcome outcome = reading.wait();
    ASSERT_EQ(outcome.state, ReadState::accepted) << outcome.status.error().to_string();
  }
}

// A cache may go at any time: who waits for a parcel, and what was published of it, must not hold it.
TEST_P(ParcelReleases, EndWithTheCacheAsReadsDo) {
  publish(spec("t"));
  const ParcelReading waits = must(reader_.parcels->read(request("nobody publishes this")));
  for (Rank* rank : {&reader_, &owner_}) {
    const Status status = rank->region.unregister();
    EXPECT_TRUE(status.ok()) << status.error().to_string();
  }
  EXPECT_EQ(waits.wait().state, ReadState::cancelled);
  EXPECT_FALSE(owner_.parcels->status("t"));
  EXPECT_EQ(owner_.parcels->take_released().size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(All, ParcelReleases, ::testing::Values("tcp", "local", "loopback"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace kvferry::test
