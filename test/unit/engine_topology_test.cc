#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "engine/io/topology.h"
#include "engine/plan/rails.h"

// A machine of two sockets with the NUMA nodes 0, 2 and 3, as a file tells hwloc, beside what /sys shows of it in a
// guest: one flat bus.

namespace kvferry {
namespace {

namespace fs = std::filesystem;

// Socket 0 has a GPU and mlx5_0 behind one switch, and eth0 at another port of the root. Socket 1 has its nodes at its
// two last-level caches, and mlx5_1 at the second. This process may not use node 3.
constexpr const char* kMachine = R"(<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0">
 <object type="Machine" os_index="0" cpuset="0x7" complete_cpuset="0x7" allowed_cpuset="0x3" nodeset="0xd"
         complete_nodeset="0xd" allowed_nodeset="0x5" gp_index="1">
  <object type="Package" os_index="0" cpuset="0x1" complete_cpuset="0x1" nodeset="0x1" complete_nodeset="0x1" gp_index="2">
   <object type="NUMANode" os_index="0" cpuset="0x1" complete_cpuset="0x1" nodeset="0x1" complete_nodeset="0x1"
           gp_index="3" local_memory="1048576"/>
   <object type="PU" os_index="0" cpuset="0x1" complete_cpuset="0x1" nodeset="0x1" complete_nodeset="0x1" gp_index="4"/>
   <object type="Bridge" gp_index="5" bridge_type="0-1" depth="0" bridge_pci="0000:[00-05]">
    <object type="Bridge" gp_index="6" bridge_type="1-1" depth="1" bridge_pci="0000:[01-04]" pci_busid="0000:00:01.0"
            pci_type="0604 [8086:2030] [0000:0000] 04">
     <object type="PCIDev" gp_index="7" pci_busid="0000:02:00.0" pci_type="0302 [10de:2330] [10de:16c1] a1"/>
     <object type="PCIDev" gp_index="8" pci_busid="0000:03:00.0" pci_type="0207 [15b3:1021] [15b3:0021] 00">
      <object type="OSDev" gp_index="9" name="mlx5_0" subtype="OpenFabrics" osdev_type="3"/>
     </object>
    </object>
    <object type="PCIDev" gp_index="10" pci_busid="0000:00:05.1" pci_type="0200 [8086:1572] [8086:0000] 02">
     <object type="OSDev" gp_index="11" name="eth0" osdev_type="2"/>
     <object type="OSDev" gp_index="12" name="sda" osdev_type="0"/>
    </object>
   </object>
  </object>
  <object type="Package" os_index="1" cpuset="0x6" complete_cpuset="0x6" nodeset="0xc" complete_nodeset="0xc" gp_index="20">
   <object type="L3Cache" cpuset="0x2" complete_cpuset="0x2" nodeset="0x4" complete_nodeset="0x4" gp_index="21"
           cache_size="1048576" depth="3" cache_linesize="64" cache_associativity="16" cache_type="0">
    <object type="NUMANode" os_index="2" cpuset="0x2" complete_cpuset="0x2" nodeset="0x4" complete_nodeset="0x4"
            gp_index="22" local_memory="1048576"/>
    <object type="PU" os_index="1" cpuset="0x2" complete_cpuset="0x2" nodeset="0x4" complete_nodeset="0x4" gp_index="23"/>
   </object>
   <object type="L3Cache" cpuset="0x4" complete_cpuset="0x4" nodeset="0x8" complete_nodeset="0x8" gp_index="24"
           cache_size="1048576" depth="3" cache_linesize="64" cache_associativity="16" cache_type="0">
    <object type="NUMANode" os_index="3" cpuset="0x4" complete_cpuset="0x4" nodeset="0x8" complete_nodeset="0x8"
            gp_index="25" local_memory="1048576"/>
    <object type="PU" os_index="2" cpuset="0x4" complete_cpuset="0x4" nodeset="0x8" complete_nodeset="0x8" gp_index="26"/>
    <object type="Bridge" gp_index="27" bridge_type="0-1" depth="0" bridge_pci="0001:[80-81]">
     <object type="Bridge" gp_index="28" bridge_type="1-1" depth="1" bridge_pci="0001:[81-81]" pci_busid="0001:80:01.0"
             pci_type="0604 [8086:2030] [0000:0000] 04">
      <object type="PCIDev" gp_index="29" pci_busid="0001:81:00.0" pci_type="0207 [15b3:1021] [15b3:0021] 00">
       <object type="OSDev" gp_index="30" name="mlx5_1" subtype="OpenFabrics" osdev_type="3"/>
      </object>
     </object>
    </object>
   </object>
   <object type="PCIDev" gp_index="31" pci_busid="0001:90:00.0" pci_type="0207 [15b3:1021] [15b3:0021] 00">
    <object type="OSDev" gp_index="32" name="mlx5_2" subtype="OpenFabrics" osdev_type="3"/>
   </object>
  </object>
 </object>
 <distances2 type="NUMANode" nbobjs="3" kind="5" name="NUMALatency" indexing="os">
  <indexes length="6">0 2 3 </indexes>
  <u64values length="27">10 31 32 31 10 12 32 12 10 </u64values>
 </distances2>
</topology>
)";

class TopologyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    add_device("mlx5_0", "0000:00:06.0", "-1");
    add_device("mlx5_2", "0000:00:07.0", "3");
    add_device("mlx5_9", "0000:00:08.0", "0");
    write("devices/system/node/node0/distance", "10\n");
  }
  void TearDown() override {
    ::unsetenv("HWLOC_XMLFILE");
    fs::remove_all(root_);
  }
  void add_device(const std::string& name, const std::string& address, const std::string& node) {
    const fs::path device = root_ / "devices/pci0000:00" / address;
    write(device / "numa_node", node + "\n");
    write("class/infiniband/" + name + "/ports/1/rate", "200 Gb/sec (4X HDR)\n");
    fs::create_symlink(device, root_ / "class/infiniband" / name / "device");
  }
  void write(const fs::path& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  // As hwloc tells it that is given this file.
  std::shared_ptr<const Topology> told(const std::string& machine) {
    write("machine.xml", machine);
    ::setenv("HWLOC_XMLFILE", (root_ / "machine.xml").c_str(), 1);
    return Topology::with_hwloc(root_.string());
  }

  const fs::path root_ = fs::temp_directory_path() / ("kvf-topology-" + std::to_string(::getpid()));
};

class ByHwloc : public TopologyTest {
 protected:
  void SetUp() override {
    TopologyTest::SetUp();
    if (const auto hwloc = read_hwloc(kHwloc); !hwloc) GTEST_SKIP() << hwloc.error().to_string();
    machine_ = told(kMachine);
  }
  std::string path(const std::string& device) const { return machine_->network_device(device).place.pci; }
  int node(const std::string& device) const { return machine_->network_device(device).place.numa_node; }
  uint32_t from_gpu(const std::string& device) const {
    return distance(machine_->place_of_pci("0000:02:00.0"), machine_->network_device(device).place,
                    machine_->numa_distances());
  }
  std::shared_ptr<const Topology> machine_;
};

TEST_F(ByHwloc, DevicesHaveThePathsAndNodesOfTheFile) {
  EXPECT_THAT(machine_->source(), ::testing::MatchesRegex("hwloc .API 2.*, as told by its variables."));
  EXPECT_EQ(path("mlx5_0"), "pci0000:00/0000:00:01.0/0000:03:00.0");
  EXPECT_EQ(path("eth0"), "pci0000:00/0000:00:05.1");
  EXPECT_EQ(path("mlx5_1"), "pci0001:80/0001:80:01.0/0001:81:00.0");
  const Place gpu = machine_->place_of_pci("0000:02:00.0");
  EXPECT_EQ(gpu.pci, "pci0000:00/0000:00:01.0/0000:02:00.0");
  EXPECT_EQ(gpu.numa_node, 0);
  EXPECT_EQ(node("mlx5_0"), 0) << "/sys does not know it";
  EXPECT_EQ(node("eth0"), 0);
  EXPECT_EQ(node("mlx5_1"), 3) << "the kernel's number, of the cache that it is at";
  EXPECT_EQ(path("sda"), "") << "no device of a network";
}

TEST_F(ByHwloc, DistancesAreByTheKernelsNumbersOfNodes) {
  EXPECT_EQ(machine_->numa_distances(),
            (std::vector<std::vector<int>>{{10, 0, 31, 32}, {0, 0, 0, 0}, {31, 0, 10, 12}, {32, 0, 12, 10}}));
  EXPECT_EQ(from_gpu("mlx5_0"), 1u);
  EXPECT_EQ(from_gpu("eth0"), 2u);
  EXPECT_EQ(from_gpu("mlx5_1"), 32u);
  EXPECT_EQ(distance({2, ""}, machine_->network_device("mlx5_1").place, machine_->numa_distances()), 12u)
      << "memory, by get_mempolicy";
  EXPECT_EQ(distance({1, ""}, {0, ""}, machine_->numa_distances()), 20u) << "a node that hwloc does not know";
}

TEST_F(ByHwloc, WhatItDoesNotKnowIsOfSysFieldByField) {
  EXPECT_EQ(machine_->network_device("mlx5_0").gigabits, 200);
  EXPECT_EQ(node("mlx5_2"), 3) << "the file has it at a socket of two nodes";
  EXPECT_EQ(path("mlx5_2"), "pci0001:90/0001:90:00.0") << "a file without bridges";
  EXPECT_EQ(node("mlx5_9"), 0) << "not in the file";
  EXPECT_EQ(node("gone"), -1);
  EXPECT_EQ(path("gone"), "");
}

// In this guest's /sys all devices are behind the root that the GPU has in the file.
TEST_F(ByHwloc, PathsOfSysHaveNoBridgeInCommonWithThoseOfTheFile) {
  EXPECT_EQ(path("mlx5_9"), "sys:pci0000:00/0000:00:08.0");
  EXPECT_EQ(from_gpu("mlx5_9"), 10u) << "of one node, and no more is known";
  EXPECT_EQ(distance({0, "sys:pci0000:00/0000:00:0a.0"}, machine_->network_device("mlx5_9").place, {}), 2u);
}

TEST_F(ByHwloc, AFileWithoutDistancesLeavesThemToSys) {
  std::string machine = kMachine;
  const size_t begin = machine.find(" <distances2");
  machine.erase(begin, machine.find("</topology>") - begin);
  EXPECT_EQ(told(machine)->numa_distances(), (std::vector<std::vector<int>>{{10}}));
}

// Of this machine, where nobody tells hwloc otherwise.
TEST_F(ByHwloc, AndSysSpellTheDevicesOfThisMachineAlike) {
  ::unsetenv("HWLOC_XMLFILE");
  const auto known = read_hwloc(kHwloc);
  ASSERT_TRUE(known);
  size_t compared = 0;
  for (const auto& [address, place] : known->pci_devices) {
    const Place by_sys = place_of_pci(address);
    if (by_sys.pci.empty()) continue;  // a /sys that has less
    EXPECT_EQ(place.pci, by_sys.pci);
    EXPECT_TRUE(by_sys.numa_node < 0 || place.numa_node < 0 || by_sys.numa_node == place.numa_node) << address;
    ++compared;
  }
  if (compared == 0) GTEST_SKIP() << "no PCI device here";
}

TEST_F(TopologyTest, IsOfSysWhereTheLibraryIsNotThere) {
  ::setenv("HWLOC_XMLFILE", "not read", 1);
  const auto topology = Topology::with_hwloc(root_.string(), "libhwloc-that-is-not-there.so");
  EXPECT_THAT(topology->source(), ::testing::StartsWith("/sys ("));
  const NetworkDevice device = topology->network_device("mlx5_9");
  EXPECT_EQ(device.place.pci, "pci0000:00/0000:00:08.0");
  EXPECT_EQ(device.place.numa_node, 0);
  EXPECT_EQ(device.gigabits, 200);
  EXPECT_EQ(topology->numa_distances(), (std::vector<std::vector<int>>{{10}}));
}

TEST_F(TopologyTest, IsOfSysWhereTheLibraryIsAnotherOne) {
  EXPECT_THAT(Topology::with_hwloc(root_.string(), "libc.so.6")->source(), ::testing::StartsWith("/sys ("));
}

TEST_F(TopologyTest, IsOfSysAloneUnlessHwlocIsAskedFor) {
  const Topology topology(root_.string());
  EXPECT_EQ(topology.source(), "/sys");
  EXPECT_EQ(topology.network_device("mlx5_9").place.pci, "pci0000:00/0000:00:08.0");
}

}  // namespace
}  // namespace kvferry
