#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/fabric/plugin/path.h"
#include "test/support/engines.h"
#include "test/support/fabric_folders.h"

// A plug-in's path by itself, over a transport that moves nothing.

namespace kvferry::test {
namespace {

constexpr uint64_t kLength = 4096;

RegionInfo region(RegionId id) {
  RegionInfo out{.id = id, .permissions = kRemoteRead, .base = id << 20, .length = kLength};
  out.keys = std::make_shared<RegionKeys>(RegionKeys{{"ucx", "kkkk"}});
  return out;
}

class PluginPaths : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(node_->take("owner")); }
  std::shared_ptr<Job> job(const std::shared_ptr<const RegionTable>& table, RegionId id) {
    auto out = std::make_shared<Job>();
    out->pairs = {{here_.data(), id, 0, kLength}};
    out->bytes = kLength;
    out->table = table;
    out->remote = {table->find(id)};
    return out;
  }
  // What comes of a read of that region, which the job takes from a table that still had it.
  Status read(const std::shared_ptr<const RegionTable>& table, RegionId id) {
    std::optional<Status> outcome;
    const auto asked = job(table, id);
    asked->done = [&outcome](Status status) { outcome = std::move(status); };
    path_.start(asked);
    EXPECT_FALSE(outcome) << "whoever starts a job does not expect its end in the same call";
    turn_until([&] { return outcome.has_value(); });
    return std::move(*outcome);
  }
  void turn_until(const std::function<bool()>& condition) {
    const TimePoint deadline = loop_->now() + std::chrono::seconds(20);
    while (!condition() && loop_->now() < deadline) loop_->run_once(deadline, none_);
    ASSERT_TRUE(condition());
  }

  const std::atomic<size_t> none_{0};
  std::vector<std::byte> here_ = std::vector<std::byte>(kLength);
  std::unique_ptr<EpollLoop> loop_ = must(EpollLoop::create(std::make_shared<SystemClock>()));
  std::unique_ptr<plugin::Node> node_ =
      must(plugin::Node::open(*loop_, must(plugin::Library::load("ucx", null_fabric_folder())), {}, "127.0.0.1", 0, 1,
                              std::make_shared<Topology>()));
  plugin::PluginPath path_{*loop_, *node_, "owner", "127.0.0.1:1", {}};
};

// A read that is moved in pieces, with copies between them, may come to its next one after that.
TEST_F(PluginPaths, StartNothingInARegionThatTheOwnerHasTakenBack) {
  const auto before = RegionTable::next(RegionTable(), std::vector{region(1), region(2)}, {});
  const auto after = RegionTable::next(*before, {}, std::vector<RegionId>{1});
  EXPECT_TRUE(read(before, 1).ok());
  bool quiet = false;
  path_.retire(after, [&quiet] { quiet = true; });
  turn_until([&] { return quiet; });
  const Status refused = read(before, 1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::not_found);
  EXPECT_THAT(refused.error().to_string(), ::testing::HasSubstr("region 1 was unregistered"));
  EXPECT_TRUE(read(before, 2).ok());
  // One that came later than that table was not taken back.
  EXPECT_TRUE(read(RegionTable::next(*after, std::vector{region(3)}, {}), 3).ok());
}

TEST_F(PluginPaths, CanEndWhatItRefusedBeforeItHasSaidSo) {
  const auto before = RegionTable::next(RegionTable(), std::vector{region(1), region(2)}, {});
  path_.retire(RegionTable::next(*before, {}, std::vector<RegionId>{1}), [] {});
  const auto asked = job(before, 1);
  asked->done = [](const Status&) { ADD_FAILURE() << "it was cancelled"; };
  path_.start(asked);
  EXPECT_TRUE(path_.cancel(asked, [] {}));
  EXPECT_TRUE(read(before, 2).ok());
}

}  // namespace
}  // namespace kvferry::test
