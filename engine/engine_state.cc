#include "engine/engine_state.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "common/text.h"
#include "engine/memory/cuda/cuda_memory.h"
#include "engine/rdma_choice.h"

namespace kvferry::detail {

Result<MemoryKinds> known_kinds(const EngineConfig& config) {
  MemoryKinds known;
  known.add(make_host_memory());
  cuda::Options options;
  options.library = config.cuda_driver;
  KVF_ASSIGN_OR_RETURN(options.gather, cuda::parse_gather(config.cuda_gather));
  known.add(std::make_shared<cuda::CudaMemory>(options));
  return known;
}

void EngineState::call(const std::function<void(Task finished)>& task, TimePoint deadline) {
  auto done = std::make_shared<std::atomic<bool>>(false);
  const Task finished = [this, done] {
    done->store(true, std::memory_order_release);
    driver->wake_waiters();
  };
  if (driver->owned_here()) return task(finished);
  driver->post([task, finished] { task(finished); }, true);
  driver->wait(*done, deadline);
}

Status EngineState::usable() const {
  if (::getpid() != pid)
    return Error{ErrorCode::unsupported, "this engine belongs to the parent process: create one after fork()"};
  if (stopped.load()) return Error{ErrorCode::cancelled, "the engine has been shut down"};
  return {};
}

Status EngineState::open_plugin(const std::string& name, const std::vector<std::string>& hosts, bool by_device) {
  KVF_ASSIGN_OR_RETURN(auto library, plugin::Library::load(name, config.plugin_folder));
  const bool several = hosts.size() > 1;
  if (several && !topology) {
    topology = Topology::with_hwloc(config.sys);
    registry->set_topology(topology);
  }
  const auto known = several ? topology : std::make_shared<const Topology>(config.sys);
  std::vector<std::unique_ptr<plugin::Node>> rails;
  for (const std::string& host : hosts) {
    KVF_ASSIGN_OR_RETURN(auto node, plugin::Node::open(*loop, library, config.fabric_settings, host, rails.size(),
                                                       random.next(), known));
    if (!node->enforces_keys() && config.auth.mode != AuthMode::open)
      return Error{ErrorCode::permission_denied,
                   "fabric \"" + name + "\" would move bytes by transports that check no keys (" + node->describe() +
                       "): whoever reaches its port could read and write this process's memory. Auth mode " +
                       std::string(to_string(config.auth.mode)) + " does not allow that"};
    if (!node->enforces_keys() && by_device)
      return Error{ErrorCode::unsupported, "it would not use a device alone: " + node->describe()};
    rails.push_back(std::move(node));
  }
  for (auto& node : rails) {
    registry->add_mapper(node.get());
    nodes.push_back(std::move(node));
  }
  return {};
}

Status EngineState::open_rdma() {
  const auto wish = std::find(config.fabrics.begin(), config.fabrics.end(), kRdma);
  const auto place = choose_rdma_hosts(config, find_rdma_devices(config.sys), interface_addresses());
  std::string why = place ? place->why : place.error().message;
  if (place) {
    for (const std::string& name : known_plugins()) {
      const Status opened = open_plugin(name, place->hosts, true);
      if (opened.ok()) {
        *wish = name;
        rdma = fmt::format(R"({{"fabric":{},"why":{}}})", json_quote(name), json_quote(why));
        return {};
      }
      why += fmt::format("; {}: {}", name, opened.error().to_string());
    }
  }
  config.fabrics.erase(wish);
  rdma = fmt::format(R"({{"fabric":null,"why":{}}})", json_quote(why));
  if (config.fabrics.empty() || config.without_rdma == WithoutRdma::refuse)
    return Error{ErrorCode::unsupported,
                 "RDMA cannot be had here (without it: protocol tcp or auto, fabrics local, tcp)", why};
  const std::string line = fmt::format("RDMA cannot be had: {}: using {}", why, fmt::join(config.fabrics, ", "));
  if (config.without_rdma == WithoutRdma::warn)
    config.logger->warning("{}", line);
  else
    config.logger->info("{}", line);
  return {};
}

Status EngineState::open_plugins() {
  KVF_ASSIGN_OR_RETURN(const Address listen, parse_address(config.listen, false));
  const std::vector<std::string> hosts =
      config.rdma_hosts.empty() ? std::vector<std::string>{listen.host} : config.rdma_hosts;
  const std::vector<std::string> names = config.fabrics;  // open_rdma() changes them
  for (const std::string& name : names) {
    if (name == kRdma)
      KVF_RETURN_IF_ERROR(open_rdma());
    else if (!is_builtin_fabric(name))
      KVF_RETURN_IF_ERROR(open_plugin(name, hosts, false));
  }
  return {};
}

std::vector<plugin::Node*> EngineState::open_nodes() const {
  std::vector<plugin::Node*> out;
  for (const auto& node : nodes) out.push_back(node.get());
  return out;
}

// Several registrations in a row are told in one go.
void EngineState::announce() {
  if (announcing.exchange(true)) return;
  driver->post([this] {
    announcing.store(false);
    core->announce_regions();
  });
}

std::vector<Status> EngineState::unregister(std::span<const RegionId> ids, Duration patience) {
  if (stopped.load() || ids.empty()) return std::vector<Status>(ids.size());
  if (Status status = usable(); !status.ok()) return std::vector<Status>(ids.size(), status);
  const auto results = std::make_shared<std::vector<Status>>(ids.size());
  const bool in_callback = driver->owned_here();
  call([&, results](Task finished) {
    // A callback cannot wait: it is told how things stand now. The quarantine's end is told like a transfer's, so that
    // a caller's event loop wakes up for it.
    const TimePoint deadline = in_callback ? clock->now() : clock->now() + patience;
    const auto left = std::make_shared<size_t>(ids.size() + 1);
    for (size_t i = 0; i < ids.size(); ++i)
      core->unregister(
          ids[i], deadline,
          [results, left, finished, i](Status status) {
            (*results)[i] = std::move(status);
            if (--*left == 0) finished();
          },
          [this] { hub->tell(kQuietAgain); });
    if (--*left == 0) finished();  // not before: with it ends what this refers to
  });
  return *results;
}

}  // namespace kvferry::detail
