#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "common/fd.h"
#include "engine/fabric/ucx/device.h"
#include "engine/plan/rails.h"
#include "engine/rdma_choice.h"

namespace kvferry {
namespace {

namespace fs = std::filesystem;

const std::vector<std::vector<int>> kTwoSockets = {{10, 21}, {21, 10}};

// ---- how far

TEST(RailDistance, OrdersSwitchRootNodeAndTheRest) {
  const Place gpu{0, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0"};
  const Place beside{0, "pci0000:00/0000:00:01.0/0000:01:01.0"};
  const Place same_root{0, "pci0000:00/0000:00:03.0/0000:05:00.0"};
  const Place same_node{0, "pci0000:40/0000:40:01.0/0000:41:00.0"};
  const Place other_node{1, "pci0000:80/0000:80:01.0/0000:81:00.0"};
  std::vector<uint32_t> distances;
  for (const Place& nic : {beside, same_root, same_node, other_node})
    distances.push_back(distance(gpu, nic, kTwoSockets));
  EXPECT_EQ(distances, (std::vector<uint32_t>{1, 2, 10, 21}));
}

TEST(RailDistance, OfHostMemoryIsThatOfItsNode) {
  const Place memory{1, ""};
  EXPECT_EQ(distance(memory, {1, "pci0000:80/0000:80:01.0"}, kTwoSockets), 10u);
  EXPECT_EQ(distance(memory, {0, "pci0000:00/0000:00:01.0"}, kTwoSockets), 21u);
  EXPECT_GT(distance(memory, {0, ""}, {}), 10u) << "without a table another node is farther all the same";
}

// A name that begins like another's is no common bridge.
TEST(RailDistance, ComparesWholeNames) {
  EXPECT_EQ(distance({0, "pci0000:00/0000:00:01.0"}, {0, "pci0000:00/0000:00:01.1"}, {}), 2u);
  EXPECT_EQ(distance({0, "pci0000:0"}, {0, "pci0000:00"}, {}), 10u);
}

TEST(RailDistance, IsTheSameForAllWhereNothingIsKnown) {
  EXPECT_EQ(distance({}, {1, "pci0000:80"}, kTwoSockets), 0u);
  EXPECT_EQ(distance({0, ""}, {}, kTwoSockets), 0u);
}

// ---- which one

constexpr uint64_t kDepth = 8 << 20;

struct Choice {
  const char* what;
  std::vector<Rail> rails;
  std::optional<size_t> wanted;
};

TEST(ChooseRail, Table) {
  const std::vector<Choice> table = {
      {"the first of equals", {{true, 0, 0, 0}, {true, 0, 0, 0}}, 0},
      {"the one with less to do", {{true, 0, 0, 100}, {true, 0, 0, 0}}, 1},
      {"the nearest, however much it has", {{true, 21, 0, 0}, {true, 10, 0, 5 << 20}}, 1},
      {"none while the nearest is full", {{true, 21, 0, 0}, {true, 10, 0, kDepth}}, std::nullopt},
      {"a farther one when the nearest is out", {{true, 21, 0, 0}, {false, 10, 0, 0}}, 0},
      {"the faster one", {{true, 0, 100, 0}, {true, 0, 400, 0}}, 1},
      {"the faster one until it has four times as much", {{true, 0, 100, 0}, {true, 0, 400, 7 << 20}}, 0},
      {"as if equal where one speed is unknown", {{true, 0, 100, 0}, {true, 0, 0, 0}}, 0},
      {"unknown speeds of those that are out do not count",
       {{true, 0, 100, 0}, {true, 0, 400, 0}, {false, 0, 0, 0}},
       1},
      {"any when all are out", {{false, 0, 0, 100}, {false, 0, 0, 0}}, 1},
      {"none of none", {}, std::nullopt},
  };
  for (const Choice& each : table) EXPECT_EQ(choose_rail(each.rails, 2 << 20, kDepth), each.wanted) << each.what;
}

// Given out one by one, rails have bytes by their speed.
TEST(ChooseRail, SharesOutBySpeed) {
  std::vector<Rail> rails = {{true, 0, 100, 0}, {true, 0, 300, 0}};
  std::vector<uint64_t> total(2);
  for (int i = 0; i < 400; ++i) {
    const auto chosen = choose_rail(rails, 1, UINT64_MAX);
    ASSERT_TRUE(chosen);
    ++rails[*chosen].waiting;
    ++total[*chosen];
  }
  EXPECT_EQ(total, (std::vector<uint64_t>{100, 300}));
}

// ---- what the kernel tells

class FakeSys : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("kvf-sys-" + std::to_string(::getpid()));
    const fs::path nic = root_ / "devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0";
    write(nic / "numa_node", "1\n");
    write(root_ / "class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)\n");
    fs::create_symlink(nic, root_ / "class/infiniband/mlx5_0/device");
    write(root_ / "class/net/eth0/speed", "25000\n");
    fs::create_symlink(nic, root_ / "class/net/eth0/device");
    write(root_ / "class/net/lo/speed", "-1\n");
    write(root_ / "devices/system/node/node0/distance", "10 21\n");
    write(root_ / "devices/system/node/node1/distance", "21 10\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  static void write(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  fs::path root_;
};

TEST_F(FakeSys, TellsOfDevices) {
  const NetworkDevice rdma = find_network_device("mlx5_0", root_.string());
  EXPECT_EQ(rdma.place.numa_node, 1);
  EXPECT_EQ(rdma.place.pci, "pci0000:3a/0000:3a:00.0/0000:3b:00.0");
  EXPECT_EQ(rdma.gigabits, 100);
  const NetworkDevice link = find_network_device("eth0", root_.string());
  EXPECT_EQ(link.gigabits, 25);
  EXPECT_EQ(link.place.pci, rdma.place.pci);
  EXPECT_EQ(find_network_device("lo", root_.string()).gigabits, 0);
  for (const char* name : {"", "gone", "../net/eth0"}) {
    const NetworkDevice unknown = find_network_device(name, root_.string());
    EXPECT_EQ(unknown.place.numa_node, -1) << name;
    EXPECT_EQ(unknown.gigabits, 0) << name;
  }
  EXPECT_EQ(numa_distances(root_.string()), kTwoSockets);
  EXPECT_TRUE(numa_distances("/nonexistent").empty());
}

TEST_F(FakeSys, TellsWhichRdmaDevicesAreActiveAndWhoseAddressesTheyHave) {
  write(root_ / "class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
  write(root_ / "class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0", "eth0\n");
  write(root_ / "class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/1", "eth0.7\n");
  write(root_ / "class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/2", "");
  fs::create_directories(root_ / "class/infiniband/mlx5_0/device/net/eth0");
  fs::create_directories(root_ / "class/infiniband/mlx5_0/device/net/ib0");
  write(root_ / "class/infiniband/mlx4_0/ports/1/state", "1: DOWN\n");
  write(root_ / "class/infiniband/mlx4_0/ports/1/gid_attrs/ndevs/0", "eth1\n");
  const auto devices = find_rdma_devices(root_.string());
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_EQ(devices[0].name, "mlx4_0");
  EXPECT_FALSE(devices[0].active);
  EXPECT_EQ(devices[1].name, "mlx5_0");
  EXPECT_TRUE(devices[1].active);
  EXPECT_EQ(devices[1].interfaces, (std::vector<std::string>{"eth0", "eth0.7", "ib0"}));
  EXPECT_TRUE(find_rdma_devices("/nonexistent").empty());
}

// What UCX is told, which would else take the first device that it finds.
TEST_F(FakeSys, TellsThePortOfAnInterface) {
  write(root_ / "class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0", "eth0\n");
  write(root_ / "class/infiniband/mlx5_0/ports/2/gid_attrs/ndevs/3", "eth0.7\n");
  write(root_ / "class/infiniband/mlx5_0/device/net/ib0/dev_port", "0\n");
  write(root_ / "class/infiniband/mlx5_0/device/net/ib1/dev_port", "1\n");
  fs::create_directories(root_ / "class/infiniband/mlx5_0/device/net/ib2");
  // The hardware has it, but it is the address of another's port, as with what stands on several.
  fs::create_directories(root_ / "class/infiniband/mlx4_0/device/net/eth0");
  const auto port_of = [&](const char* interface) { return ucx::rdma_port_of(interface, root_.string()); };
  EXPECT_EQ(port_of("eth0"), "mlx5_0:1");
  EXPECT_EQ(port_of("eth0.7"), "mlx5_0:2");
  EXPECT_EQ(port_of("ib0"), "mlx5_0:1") << "IPoIB";
  EXPECT_EQ(port_of("ib1"), "mlx5_0:2");
  EXPECT_EQ(port_of("ib2"), "mlx5_0:1") << "a kernel that does not say which port it is";
  EXPECT_EQ(port_of("eth1"), "");
  EXPECT_EQ(ucx::rdma_port_of("eth0", "/nonexistent"), "");
}

// In a network of the test's own: a second address of lo by a label, as ifconfig gives them, and a link that is down.
TEST(InterfaceAddresses, HaveNoLabelsAndNoneOfLinksThatAreDown) {
  std::vector<std::string> up, down;
  bool allowed = false;
  std::thread([&] {
    if (!(allowed = ::unshare(CLONE_NEWNET) == 0)) return;
    const UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, "lo");
    request.ifr_flags = IFF_UP;
    EXPECT_EQ(::ioctl(control.get(), SIOCSIFFLAGS, &request), 0);
    ifreq labelled{};
    std::strcpy(labelled.ifr_name, "lo:7");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(0x0a090901);
    std::memcpy(&labelled.ifr_addr, &address, sizeof address);
    EXPECT_EQ(::ioctl(control.get(), SIOCSIFADDR, &labelled), 0);
    for (const auto& each : interface_addresses()) up.push_back(each.interface + " " + each.host);
    EXPECT_EQ(ucx::rdma_port_at("10.9.9.1"), "");
    request.ifr_flags = 0;
    EXPECT_EQ(::ioctl(control.get(), SIOCSIFFLAGS, &request), 0);
    for (const auto& each : interface_addresses()) down.push_back(each.interface + " " + each.host);
  }).join();
  if (!allowed) GTEST_SKIP() << "may not make a network of its own";
  EXPECT_NE(std::find(up.begin(), up.end(), "lo 10.9.9.1"), up.end()) << ::testing::PrintToString(up);
  EXPECT_TRUE(down.empty()) << ::testing::PrintToString(down);
}

// ---- where the fabrics of plug-ins listen when RDMA is asked for

class RdmaHost : public ::testing::Test {
 protected:
  // The host, or what is missing.
  std::string choose() const {
    const auto chosen = choose_rdma_hosts(config_, devices_, addresses_);
    return chosen ? ::testing::PrintToString(chosen->hosts) + " " + chosen->why : chosen.error().message;
  }
  EngineConfig config_;
  std::vector<RdmaDevice> devices_ = {{"mlx4_0", false, {"eth1"}}, {"mlx5_0", true, {"eth0", "eth0.7"}}};
  std::vector<InterfaceAddress> addresses_ = {
      {"lo", "127.0.0.1"}, {"eth0", "fd00::1"}, {"eth1", "10.2.0.1"}, {"eth0", "10.0.0.1"}, {"eth0.7", "10.7.0.1"}};
};

TEST_F(RdmaHost, IsThatOfTheEngineWhereADeviceHasIt) {
  config_.listen = "10.7.0.1:7100";
  EXPECT_EQ(choose(), "{ \"10.7.0.1\" } mlx5_0 at 10.7.0.1, an address of eth0.7");
}

TEST_F(RdmaHost, IsElseAnAddressOfAnActiveDevice) {
  for (const char* listen : {"0.0.0.0:0", "192.0.2.1:7100", "10.2.0.1:7100"}) {
    config_.listen = listen;
    EXPECT_EQ(choose(), "{ \"10.0.0.1\" } mlx5_0 at 10.0.0.1, an address of eth0") << listen;
  }
  config_.listen = "0.0.0.0:0";
  addresses_.resize(2);
  EXPECT_EQ(choose(), "{ \"fd00::1\" } mlx5_0 at fd00::1, an address of eth0");
}

TEST_F(RdmaHost, IsWhatTheUserSays) {
  config_.rdma_hosts = {"10.9.0.1", "10.9.1.1"};
  EXPECT_EQ(choose(), "{ \"10.9.0.1\", \"10.9.1.1\" } 10.9.0.1, 10.9.1.1 (KVFERRY_RDMA_HOST)");
}

TEST_F(RdmaHost, OpensNothingToOthersForAnEngineThatOnlyThisHostReaches) {
  EXPECT_EQ(choose(),
            "no other host reaches 127.0.0.1:0: set KVFERRY_LISTEN to an address of mlx5_0, or "
            "KVFERRY_RDMA_HOST");
}

TEST_F(RdmaHost, SaysWhatIsMissing) {
  config_.listen = "0.0.0.0:0";
  addresses_.resize(1);
  EXPECT_EQ(choose(), "no interface of mlx5_0 has an address: set KVFERRY_RDMA_HOST");
  devices_.pop_back();
  EXPECT_EQ(choose(), "no port of mlx4_0 is active");
  devices_.clear();
  EXPECT_EQ(choose(), "this machine has no RDMA device (/sys/class/infiniband)");
  config_.strict = true;
  EXPECT_EQ(choose(), "a strict engine uses the fabric tcp alone");
}

// What is there on any machine that does not forbid the question.
TEST(PlaceOfMemory, IsOneOfTheMachinesNodes) {
  const std::vector<char> memory(4096, 1);
  const int node = place_of_memory(memory.data()).numa_node;
  EXPECT_LT(node, static_cast<int>(std::max<size_t>(numa_distances().size(), 1)));
  EXPECT_EQ(place_of_memory(nullptr).numa_node, -1);
}

}  // namespace
}  // namespace kvferry
