#include "engine/io/hwloc_places.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <memory>
#include <type_traits>

// Nothing links against hwloc: what is used of it is one table of functions, found at run time.

namespace kvferry {
namespace {

constexpr size_t kMostNodes = 1024;  // of a kernel's

using PciDevice = hwloc_obj_attr_u::hwloc_pcidev_attr_s;

struct Hwloc {
  decltype(&::hwloc_get_api_version) api_version;
  decltype(&::hwloc_topology_init) init;
  decltype(&::hwloc_topology_destroy) destroy;
  decltype(&::hwloc_topology_set_flags) set_flags;
  decltype(&::hwloc_topology_set_components) set_components;
  decltype(&::hwloc_topology_set_all_types_filter) filter_all;
  decltype(&::hwloc_topology_set_io_types_filter) filter_io;
  decltype(&::hwloc_topology_load) load;
  decltype(&::hwloc_topology_is_thissystem) is_this_system;
  decltype(&::hwloc_get_obj_by_depth) object;
  decltype(&::hwloc_bitmap_weight) weight;
  decltype(&::hwloc_bitmap_first) first;
  decltype(&::hwloc_distances_get_by_type) distances;
  decltype(&::hwloc_distances_release) release_distances;
};

// It stays loaded: it may have loaded plug-ins of its own.
Result<Hwloc> open(const std::string& library) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = ::dlerror();
    return Error{ErrorCode::unsupported, "no hwloc", why != nullptr ? why : "no reason given"};
  }
  Hwloc hwloc{};
  std::string missing;
  const auto bind = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(handle, name));
    if (function == nullptr && missing.empty()) missing = name;
  };
  bind("hwloc_get_api_version", hwloc.api_version);
  bind("hwloc_topology_init", hwloc.init);
  bind("hwloc_topology_destroy", hwloc.destroy);
  bind("hwloc_topology_set_flags", hwloc.set_flags);
  bind("hwloc_topology_set_components", hwloc.set_components);
  bind("hwloc_topology_set_all_types_filter", hwloc.filter_all);
  bind("hwloc_topology_set_io_types_filter", hwloc.filter_io);
  bind("hwloc_topology_load", hwloc.load);
  bind("hwloc_topology_is_thissystem", hwloc.is_this_system);
  bind("hwloc_get_obj_by_depth", hwloc.object);
  bind("hwloc_bitmap_weight", hwloc.weight);
  bind("hwloc_bitmap_first", hwloc.first);
  bind("hwloc_distances_get_by_type", hwloc.distances);
  bind("hwloc_distances_release", hwloc.release_distances);
  if (!missing.empty()) return Error{ErrorCode::unsupported, fmt::format("hwloc is too old: it has no {}", missing)};
  // Objects are laid out alike within one major version alone.
  if (hwloc.api_version() >> 16 != HWLOC_API_VERSION >> 16)
    return Error{ErrorCode::unsupported, fmt::format("hwloc is of another version: {:#x}", hwloc.api_version())};
  return hwloc;
}

using Tree = std::unique_ptr<hwloc_topology, decltype(&::hwloc_topology_destroy)>;

Result<Tree> load(const Hwloc& hwloc) {
  hwloc_topology_t made = nullptr;
  if (hwloc.init(&made) != 0) return Error{ErrorCode::internal, "hwloc makes no topology"};
  Tree tree(made, hwloc.destroy);
  // Nodes that a container may not use, too: without them devices would seem to be on one of those that it may.
  hwloc.set_flags(made, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
  // Those that bind this thread to each core in turn, or initialise drivers of GPUs. A build of hwloc that lacks one
  // refuses its name, and that is all.
  for (const char* component : {"x86", "cuda", "nvml", "opencl", "rsmi", "levelzero", "gl"})
    hwloc.set_components(made, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, component);
  // Cores and caches go, but for those that a device or a NUMA node is attached to, which would move up with all that
  // they are near to.
  hwloc.filter_all(made, HWLOC_TYPE_FILTER_KEEP_STRUCTURE);
  hwloc.filter_io(made, HWLOC_TYPE_FILTER_KEEP_ALL);
  if (hwloc.load(made) != 0) return Error{ErrorCode::unavailable, "hwloc cannot load the topology"};
  return tree;
}

std::string address_of(const PciDevice& device) {
  return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", device.domain, device.bus, device.dev, device.func);
}

std::string root_of(unsigned domain, unsigned bus) {
  return fmt::format("pci{:04x}:{:02x}", domain, bus);
}

// Upwards, as long as it is about I/O; what comes then has processors, and the nodes of these.
Place place_of(const Hwloc& hwloc, const hwloc_obj* object) {
  Place place;
  const auto put_before = [&](const std::string& part) {
    place.pci = part + (place.pci.empty() ? "" : "/") + place.pci;
  };
  const PciDevice* top = nullptr;  // until its root is known
  for (; object != nullptr; object = object->parent) {
    if (object->type == HWLOC_OBJ_OS_DEVICE || object->type == HWLOC_OBJ_MISC) continue;
    const bool bridge = object->type == HWLOC_OBJ_BRIDGE;
    if (!bridge && object->type != HWLOC_OBJ_PCI_DEVICE) break;
    if (bridge && object->attr->bridge.upstream_type == HWLOC_OBJ_BRIDGE_HOST) {
      put_before(
          root_of(object->attr->bridge.downstream.pci.domain, object->attr->bridge.downstream.pci.secondary_bus));
      top = nullptr;
      continue;
    }
    top = bridge ? &object->attr->bridge.upstream.pci : &object->attr->pcidev;
    put_before(address_of(*top));
  }
  if (top != nullptr) put_before(root_of(top->domain, top->bus));  // a file that leaves bridges out
  if (object != nullptr && object->nodeset != nullptr && hwloc.weight(object->nodeset) == 1)
    place.numa_node = hwloc.first(object->nodeset);
  return place;
}

std::vector<std::vector<int>> distances_of(const Hwloc& hwloc, hwloc_topology_t tree) {
  unsigned count = 1;
  hwloc_distances_s* found = nullptr;
  const unsigned long kind = HWLOC_DISTANCES_KIND_FROM_OS | HWLOC_DISTANCES_KIND_MEANS_LATENCY;
  if (hwloc.distances(tree, HWLOC_OBJ_NUMANODE, &count, &found, kind, 0) != 0 || count == 0) return {};
  size_t nodes = 0;
  for (size_t i = 0; i < found->nbobjs; ++i) nodes = std::max<size_t>(nodes, found->objs[i]->os_index + size_t{1});
  std::vector<std::vector<int>> out;
  if (nodes <= kMostNodes) out.assign(nodes, std::vector<int>(nodes, 0));
  for (size_t i = 0; i < found->nbobjs && !out.empty(); ++i)
    for (size_t j = 0; j < found->nbobjs; ++j)
      out[found->objs[i]->os_index][found->objs[j]->os_index] = static_cast<int>(found->values[i * found->nbobjs + j]);
  hwloc.release_distances(tree, found);
  return out;
}

}  // namespace

Result<HwlocPlaces> read_hwloc(const std::string& library) {
  KVF_ASSIGN_OR_RETURN(const Hwloc hwloc, open(library));
  KVF_ASSIGN_OR_RETURN(const Tree tree, load(hwloc));
  HwlocPlaces out;
  const unsigned version = hwloc.api_version();
  out.source = fmt::format("hwloc (API {}.{}{})", version >> 16, version >> 8 & 0xff,
                           hwloc.is_this_system(tree.get()) != 0 ? "" : ", as told by its variables");
  const auto each = [&](int depth, const auto& use) {
    for (unsigned i = 0; const hwloc_obj* object = hwloc.object(tree.get(), depth, i); ++i) use(*object);
  };
  each(HWLOC_TYPE_DEPTH_PCI_DEVICE, [&](const hwloc_obj& object) {
    out.pci_devices.emplace(address_of(object.attr->pcidev), place_of(hwloc, &object));
  });
  each(HWLOC_TYPE_DEPTH_OS_DEVICE, [&](const hwloc_obj& object) {
    const auto type = object.attr->osdev.type;
    if (object.name != nullptr && (type == HWLOC_OBJ_OSDEV_OPENFABRICS || type == HWLOC_OBJ_OSDEV_NETWORK))
      out.network_devices.emplace(object.name, place_of(hwloc, &object));
  });
  out.numa_distances = distances_of(hwloc, tree.get());
  return out;
}

}  // namespace kvferry
