#include <gtest/gtest.h>

#include "engine/memory/fake_device.h"
#include "engine/memory/registry.h"
#include "engine/memory/staging.h"
#include "engine/parcel/digested_read.h"
#include "engine/parcel/staged_read.h"
#include "test/support/engines.h"
#include "test/support/manual_loop.h"

// What becomes of memory that a fabric may still write to when a read in pieces is over (I4): a staging buffer,
// regions.

namespace kvferry::test {
namespace {

constexpr size_t kLength = 4096;

// Keeps what it is given; what it cannot end is loose.
class DeafPath final : public OneSidedPath {
 public:
  explicit DeafPath(bool ends) : ends_(ends) {}
  const char* fabric() const override { return "deaf"; }
  void start(std::shared_ptr<Job> job) override { held_ = std::move(job); }
  bool cancel(const std::shared_ptr<Job>& job, Task) override {
    job->loose = !ends_;
    if (ends_) held_.reset();
    return true;
  }
  std::string describe() const override { return ""; }
  std::optional<bool> in_force(WordIndex, uint64_t) const override { return std::nullopt; }
  bool reaches(const RegionInfo&) const override { return true; }

  void fail() {
    const std::shared_ptr<Job> job = ends_ ? std::move(held_) : held_;
    job->loose = !ends_;
    job->done(Error{ErrorCode::peer_lost, "broke"});
  }
  void let_go() { held_.reset(); }
  size_t pins_held() const { return held_ ? held_->pins.size() : 0; }

 private:
  const bool ends_;
  std::shared_ptr<Job> held_;
};

class StagedReads : public ::testing::TestWithParam<bool> {
 protected:
  void start() {
    device_place_ = must(device_.allocate(kLength));
    const auto job = std::make_shared<Job>();
    job->pairs = {{device_place_, 1, 0, kLength}};
    job->bytes = kLength;
    job->table = table_;
    job->remote = {table_->find(1)};
    read_ = std::make_shared<StagedRead>(path_, *staging_, device_, job, false,
                                         [this](const Status& status, uint64_t) { failed_ = !status.ok(); });
    read_->start();
  }
  // Whether a buffer is to be had, which the budget allows once the first is given back.
  bool has_room() {
    const auto granted = std::make_shared<bool>(false);
    staging_->acquire(device_, kLength, [granted](const Result<Staging::Buffer>& buffer) { *granted = buffer.ok(); });
    return *granted;
  }

  ManualLoop loop_;
  FakeDevice device_;
  std::optional<Staging> staging_{std::in_place, loop_, kLength};
  DeafPath path_{GetParam()};
  std::shared_ptr<const RegionTable> table_ = RegionTable::next(
      RegionTable(), std::vector<RegionInfo>{RegionInfo{.id = 1, .base = 4096, .length = kLength}}, {});
  std::byte* device_place_ = nullptr;
  std::shared_ptr<StagedRead> read_;
  bool failed_ = false;
};

TEST_P(StagedReads, GiveTheirBufferBackWhenTheyAreStoppedUnlessTheFabricHasIt) {
  start();
  read_->stop(true);
  EXPECT_EQ(has_room(), GetParam());
}

TEST_P(StagedReads, GiveTheirBufferBackWhenTheyFailUnlessTheFabricHasIt) {
  start();
  path_.fail();
  EXPECT_TRUE(failed_);
  EXPECT_EQ(has_room(), GetParam());
}

TEST_P(StagedReads, MayOutliveTheirStaging) {
  start();
  read_->stop(true);
  read_.reset();
  staging_.reset();
  path_.let_go();
}

// The fabric takes pins of its own for what it cannot end; a piece that it knows a moment longer keeps none.
class DigestedReads : public ::testing::TestWithParam<bool> {
 protected:
  void start() {
    job_->pairs = {{memory_.data(), 1, 0, kLength}};
    job_->bytes = kLength;
    job_->table = table_;
    job_->remote = {table_->find(1)};
    job_->pins.push_back(must(registry_.pin_local(memory_.data(), kLength)));
    read_ =
        std::make_shared<DigestedRead>(path_, job_, [this](const Status& status, uint64_t) { failed_ = !status.ok(); });
    read_->start();
  }

  std::unique_ptr<GateWords> words_ = must(GateWords::create());
  Registry registry_{[] {
                       MemoryKinds kinds;
                       kinds.add(make_host_memory());
                       return kinds;
                     }(),
                     *words_, 16, 1};
  std::vector<std::byte> memory_ = std::vector<std::byte>(kLength);
  const RegionInfo region_ = must(registry_.add(memory_.data(), kLength, MemoryKind::host, kPrivate));
  DeafPath path_{GetParam()};
  std::shared_ptr<const RegionTable> table_ = RegionTable::next(
      RegionTable(), std::vector<RegionInfo>{RegionInfo{.id = 1, .base = 4096, .length = kLength}}, {});
  const std::shared_ptr<Job> job_ = std::make_shared<Job>();
  std::shared_ptr<DigestedRead> read_;
  bool failed_ = false;
};

TEST_P(DigestedReads, HoldNoRegionByAPieceOnceTheyAreStopped) {
  start();
  EXPECT_EQ(path_.pins_held(), 1U);
  read_->stop(true);
  EXPECT_EQ(path_.pins_held(), 0U);
  EXPECT_EQ(job_->loose, !GetParam()) << "whoever reads again asks the job";
}

TEST_P(DigestedReads, HoldNoRegionByAPieceOnceTheyHaveFailed) {
  start();
  path_.fail();
  EXPECT_TRUE(failed_);
  EXPECT_EQ(path_.pins_held(), 0U);
  EXPECT_EQ(job_->loose, !GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, DigestedReads, ::testing::Bool(),
                         [](const auto& tested) { return tested.param ? "ends" : "is_stuck"; });
INSTANTIATE_TEST_SUITE_P(All, StagedReads, ::testing::Bool(),
                         [](const auto& tested) { return tested.param ? "ends" : "is_stuck"; });

}  // namespace
}  // namespace kvferry::test
