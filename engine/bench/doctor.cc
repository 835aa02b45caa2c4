#include "engine/bench/doctor.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "common/config.h"
#include "engine/engine.h"
#include "engine/io/address.h"
#include "engine/io/topology.h"
#include "engine/memory/cuda/driver.h"

namespace kvferry::bench {
namespace {

namespace fs = std::filesystem;

// The first line of a small file of the kernel's, or "-".
std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  return std::getline(file, line) && !line.empty() ? line : "-";
}

std::string links() {
  std::string out;
  for (const fs::path& link : entries("/sys/class/net")) {
    const std::string speed = first_line(link / "speed");
    const bool known = speed != "-" && speed != "-1";
    out += fmt::format("link    {}: {}, {}, mtu {}\n", link.filename().string(), first_line(link / "operstate"),
                       known ? speed + " Mb/s" : "speed unknown", first_line(link / "mtu"));
  }
  return out;
}

// Where hwloc or the kernel sees a device, by which several are chosen from.
std::string place_line(const Place& place) {
  return fmt::format("NUMA node {}, {}", place.numa_node < 0 ? "unknown" : std::to_string(place.numa_node),
                     place.pci.empty() ? "no PCI device" : place.pci);
}

std::string rdma_devices(const Topology& topology) {
  std::string out;
  for (const fs::path& device : entries("/sys/class/infiniband"))
    for (const fs::path& port : entries(device / "ports"))
      out += fmt::format("rdma    {}:{}: {}, {}, {}, netdev {}, {}\n", device.filename().string(),
                         port.filename().string(), first_line(port / "state"), first_line(port / "rate"),
                         first_line(port / "link_layer"), first_line(port / "gid_attrs" / "ndevs" / "0"),
                         place_line(topology.network_device(device.filename().string()).place));
  return out.empty() ? "rdma    no device: /sys/class/infiniband has none\n" : out;
}

std::string topology_line(const Topology& topology, const Environment& environment) {
  std::string told;
  for (const auto& [name, value] : environment.with_prefix("HWLOC_")) told += fmt::format(", HWLOC_{}={}", name, value);
  return fmt::format("rdma    topology: {}{}\n", topology.source(), told);
}

// What the driver says of NICs that reach a GPU's memory by themselves.
std::string gpu_line(const cuda::Driver& driver, int number) {
  int direct = 0, dmabuf = 0, ordering = 0;
  for (const auto& [attribute, value] :
       {std::pair(cuda::kDeviceDirectRdma, &direct), std::pair(cuda::kDeviceDmabuf, &dmabuf),
        std::pair(cuda::kDeviceWritesOrdering, &ordering)})
    if (driver.device_attribute(value, attribute, number) != cuda::kSuccess) *value = 0;  // a driver from before it
  return fmt::format("gpu     {}: GPUDirect RDMA {}, dma_buf {}, what NICs write is {}\n", number,
                     direct != 0 ? "yes" : "no", dmabuf != 0 && driver.range_handle != nullptr ? "yes" : "no",
                     ordering >= cuda::kOrderedForAll ? "ordered" : "flushed by the driver, or not registered");
}

std::string gpus(const std::string& library) {
  const auto driver = cuda::Driver::load(library);
  if (!driver) return fmt::format("gpu     none: {}\n", driver.error().to_string());
  int count = 0;
  std::string out;
  if (Status asked = (*driver)->check((*driver)->device_count(&count), "cannot count GPUs"); !asked.ok())
    out += fmt::format("gpu     {}\n", asked.error().to_string());
  for (int number = 0; number < count; ++number) out += gpu_line(**driver, number);
  const char* peermem = fs::exists("/sys/module/nvidia_peermem") ? "" : "not ";
  return out + fmt::format(
                   "gpu     nvidia_peermem is {}loaded: by it, or else by dma_buf, a NIC reaches a GPU's memory; "
                   "describe() says whether that goes by ucx or ofi, else by tcp\n",
                   peermem);
}

std::string limit_text(rlim_t value) {
  return value == RLIM_INFINITY ? "unlimited" : std::to_string(value);
}

std::string limits() {
  rlimit locked{};
  rlimit descriptors{};
  ::getrlimit(RLIMIT_MEMLOCK, &locked);
  ::getrlimit(RLIMIT_NOFILE, &descriptors);
  std::string out = fmt::format("limit   locked memory (ulimit -l): {}{}\n", limit_text(locked.rlim_cur),
                                locked.rlim_cur == RLIM_INFINITY ? "" : " bytes: RDMA devices register no more");
  out += fmt::format("limit   descriptors (ulimit -n): {}\n", limit_text(descriptors.rlim_cur));
  return out + fmt::format("limit   kernel.yama.ptrace_scope: {} (the fabric local needs 0, or the same parent)\n",
                           first_line("/proc/sys/kernel/yama/ptrace_scope"));
}

// An engine with that fabric alone, on a port of its own.
std::string fabric_line(const std::string& name, EngineConfig config) {
  const auto names = [&](std::string_view one) {
    return std::find(config.fabrics.begin(), config.fabrics.end(), one) != config.fabrics.end();
  };
  const bool used = names(name) || (names(kRdma) && !is_builtin_fabric(name));
  const char* wish = used ? "named by KVFERRY_FABRICS or its default" : "not named by KVFERRY_FABRICS: never used";
  config.fabrics = {name};
  const auto engine = Engine::create(std::move(config));
  if (!engine) return fmt::format("fabric  {}: not viable here, {}: {}\n", name, wish, engine.error().to_string());
  const std::string described = (*engine)->describe();
  const std::string key = "\"plugins\":{\"" + name + "\":\"";
  std::string facts;
  if (const size_t at = described.find(key); at != std::string::npos)
    facts = " (" + described.substr(at + key.size(), described.find('"', at + key.size()) - at - key.size()) + ")";
  return fmt::format("fabric  {}: viable, {}{}\n", name, wish, facts);
}

// What an engine that is given the word "rdma" makes of it here.
std::string rdma_line(EngineConfig config) {
  config.fabrics = {std::string(kRdma), "tcp"};
  const auto engine = Engine::create(std::move(config));
  if (!engine) return fmt::format("choice  rdma: {}\n", engine.error().to_string());
  const std::string described = (*engine)->describe();
  const std::string key = "\"rdma\":";
  const size_t at = described.find(key);
  if (at == std::string::npos) return "";
  const size_t end = described.find('}', at);
  return "choice  rdma: " + described.substr(at + key.size(), end + 1 - at - key.size()) + "\n";
}

}  // namespace

Result<std::string> examine_this_host() {
  const Environment environment = Environment::of_process();
  KVF_ASSIGN_OR_RETURN(EngineConfig config, EngineConfig::from_environment(environment));
  const auto topology = Topology::with_hwloc(config.sys);
  KVF_ASSIGN_OR_RETURN(Address listen, parse_address(config.listen, false));
  config.listen = Address{listen.host, 0}.to_string();
  config.logger = make_null_logger();
  std::string out =
      links() + rdma_devices(*topology) + topology_line(*topology, environment) + gpus(config.cuda_driver) + limits();
  std::vector<std::string> names = {"local", "tcp"};
  for (const std::string& plugin : known_plugins()) names.push_back(plugin);
  for (const std::string& name : names) out += fabric_line(name, config);
  if (std::find(config.fabrics.begin(), config.fabrics.end(), kRdma) != config.fabrics.end()) out += rdma_line(config);
  out += "choice  between two engines: ";
  for (const std::string& name : config.fabrics) out += name + (name == config.fabrics.back() ? "" : ", then ");
  return out + "; local where both are on one host. describe() says which was taken for a peer, and why.\n";
}

}  // namespace kvferry::bench
