#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "test/conformance/null_engine.h"
#include "test/support/lines.h"

// Engines that are told to use "rdma", on a machine that has a device as far as its kernel tells: a tree of files. The
// plug-in is the one that moves nothing (test/support/null_fabric), by the name of ucx; there is none by that of ofi.

namespace kvferry::test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RdmaWish : public ::testing::Test {
 protected:
  void SetUp() override {
    const fs::path port = root_ / "class/infiniband/rdma0/ports/1";
    fs::create_directories(port / "gid_attrs/ndevs");
    std::ofstream(port / "state") << "4: ACTIVE\n";
    std::ofstream(port / "gid_attrs/ndevs/0") << "lo\n";
    config_ = null_config("wishful");
    config_.fabrics = {"rdma", "local", "tcp"};
    config_.sys = root_.string();
    config_.logger = lines_;
  }
  void TearDown() override { fs::remove_all(root_); }
  void take_plugins_away() { config_.plugin_folder = root_.string(); }
  std::vector<std::string> fabrics() const { return must(Engine::create(config_))->self().fabrics; }

  const fs::path root_ = fs::temp_directory_path() / ("kvf-rdma-" + std::to_string(::getpid()));
  const std::shared_ptr<Lines> lines_ = std::make_shared<Lines>();
  EngineConfig config_;
};

TEST_F(RdmaWish, TakesThePluginThatWorksByTheAddressOfTheDevice) {
  const auto engine = must(Engine::create(config_));
  EXPECT_THAT(engine->self().fabrics, ElementsAre("ucx", "local", "tcp"));
  const std::string told = engine->describe();
  EXPECT_THAT(told, HasSubstr(R"("rdma":{"fabric":"ucx","why":"rdma0 at 127.0.0.1, an address of lo"})"));
  EXPECT_THAT(told, HasSubstr(R"("plugins":{"ucx":)"));
  EXPECT_EQ(lines_->text(), "");
}

TEST_F(RdmaWish, WithoutADeviceOpensNoPluginAndSaysSoInOneLine) {
  fs::remove_all(root_ / "class");
  const auto engine = must(Engine::create(config_));
  EXPECT_THAT(engine->self().fabrics, ElementsAre("local", "tcp"));
  EXPECT_THAT(engine->describe(),
              HasSubstr(R"("plugins":{},"rdma":{"fabric":null,"why":"this machine has no RDMA dev)"));
  EXPECT_EQ(lines_->text(), "RDMA cannot be had: this machine has no RDMA device (" + root_.string() +
                                "/class/infiniband): using local, tcp\n");
}

TEST_F(RdmaWish, TriesUcxThenOfiAndFallsBack) {
  take_plugins_away();
  EXPECT_THAT(fabrics(), ElementsAre("local", "tcp"));
  EXPECT_THAT(lines_->text(),
              HasSubstr("rdma0 at 127.0.0.1, an address of lo; ucx: fabric \"ucx\" is not in this build"));
  EXPECT_THAT(lines_->text(), HasSubstr("; ofi: fabric \"ofi\" is not in this build"));
}

TEST_F(RdmaWish, IsRefusedWhereItMustBeOrNothingElseIsNamed) {
  take_plugins_away();
  config_.without_rdma = WithoutRdma::refuse;
  const auto refused = Engine::create(config_);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
  EXPECT_THAT(refused.error().to_string(), HasSubstr("ofi: fabric \"ofi\" is not in this build"));
  config_.without_rdma = WithoutRdma::quiet;
  config_.fabrics = {"rdma"};
  EXPECT_FALSE(Engine::create(config_).ok());
}

TEST_F(RdmaWish, OfAStrictEngineComesToNothing) {
  config_.strict = true;
  EXPECT_THAT(fabrics(), ElementsAre("tcp"));
  EXPECT_THAT(lines_->text(), HasSubstr("a strict engine uses the fabric tcp alone"));
}

TEST_F(RdmaWish, StandsForItselfOnce) {
  for (const std::vector<std::string>& names :
       {std::vector<std::string>{"rdma", "ucx"}, {"ofi", "rdma"}, {"rdma", "rdma"}}) {
    config_.fabrics = names;
    EXPECT_FALSE(Engine::create(config_).ok()) << names[0] << ", " << names[1];
  }
}

}  // namespace
}  // namespace kvferry::test
