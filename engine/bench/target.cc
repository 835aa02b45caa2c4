#include "engine/bench/target.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <sstream>
#include <vector>

#include "engine/bench/auth.h"
#include "engine/bench/cases.h"
#include "engine/bench/channel.h"
#include "engine/bench/parcel_target.h"
#include "engine/bench/pool.h"
#include "engine/bench/raw.h"
#include "engine/engine.h"
#include "engine/fabric/local/host.h"

namespace kvferry::bench {
namespace {

Result<EngineConfig> engine_config(const std::string& host, const std::string& plugin) {
  KVF_ASSIGN_OR_RETURN(EngineConfig config, base_config());
  config.engine_id = "bench-target";
  config.listen = Address{host, 0}.to_string();
  if (!plugin.empty()) config.fabrics.push_back(plugin);
  config.allow_open = true;  // whoever binds the target to a reachable address means it
  return config;
}

class Target {
 public:
  static Result<std::unique_ptr<Target>> create(const std::string& host, const TargetOptions& options) {
    const uint64_t bytes = options.pool;
    auto target = std::make_unique<Target>();
    target->host_ = host;
    KVF_ASSIGN_OR_RETURN(target->pool_, Pool::create(bytes));
    KVF_ASSIGN_OR_RETURN(target->raw_, RawServer::create(host));
    KVF_ASSIGN_OR_RETURN(EngineConfig config, engine_config(host, options.plugin));
    KVF_ASSIGN_OR_RETURN(target->engine_, Engine::create(std::move(config)));
    KVF_ASSIGN_OR_RETURN(target->region_, target->engine_->register_memory(target->pool_->base(), bytes,
                                                                           MemoryKind::host, kRemoteReadWrite));
    return target;
  }

  Result<std::string> answer(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string verb = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (verb == "hello") return hello();
    if (verb == "plan") return plan(rest);
    if (verb == "fill") return fill(rest);
    if (verb == "check") return check(rest);
    if (verb == "regions") return regions(rest);
    if (verb == "parcel") return parcel(rest);
    if (verb == "take") return std::to_string(engine_->notifications().size());
    return Error{ErrorCode::invalid_argument, "unknown verb " + verb};
  }

 private:
  Result<std::string> hello() {
    const HostIdentity identity = this_host();
    return fmt::format("{} {} {} {} {} {} {} {}", identity.pid, identity.boot_id, identity.pid_namespace,
                       reinterpret_cast<uint64_t>(pool_->base()), pool_->size(), region_.id(), engine_->address(),
                       raw_->address());
  }

  Result<std::string> plan(const std::string& text) {
    KVF_ASSIGN_OR_RETURN(plan_, case_from_line(text));
    if (!fits(plan_, pool_->size())) return Error{ErrorCode::invalid_argument, "the case does not fit into the pool"};
    std::vector<Vectors> vectors;
    for (int thread = 0; thread < plan_.threads; ++thread) {
      Vectors& blocks = vectors.emplace_back();
      for (const uint64_t offset : block_offsets(plan_, Side::remote, thread, pool_->size()))
        blocks.push_back({pool_->base() + offset, plan_.block});
    }
    raw_->set_plan(std::move(vectors));
    return std::string("ok");
  }

  Result<std::string> fill(const std::string& seed) {
    pool_->fill(std::strtoull(seed.c_str(), nullptr, 10));
    return std::string("ok");
  }

  Result<std::string> check(const std::string& text) {
    uint64_t seed = 0;
    uint64_t from_seed = 0;
    std::istringstream(text) >> seed >> from_seed;
    std::vector<Moved> moved;
    for (int thread = 0; from_seed != 0 && thread < plan_.threads; ++thread) {
      const auto here = block_offsets(plan_, Side::remote, thread, pool_->size());
      const auto there = block_offsets(plan_, Side::local, thread, pool_->size());
      for (size_t i = 0; i < here.size(); ++i) moved.push_back({here[i], there[i], plan_.block});
    }
    KVF_RETURN_IF_ERROR(check_pool(*pool_, seed, moved, from_seed));
    return std::string("ok");
  }

  // Cuts the pool into regions of whole pages.
  Result<std::string> regions(const std::string& text) {
    const uint64_t count = std::strtoull(text.c_str(), nullptr, 10);
    many_regions_.clear();
    many_.reset();
    constexpr uint64_t kRegionBytes = 4096;
    if (count == 0 || count * kRegionBytes > pool_->size())
      return Error{ErrorCode::invalid_argument, "so many regions do not fit into the pool"};
    KVF_ASSIGN_OR_RETURN(EngineConfig config, engine_config(host_, ""));
    KVF_ASSIGN_OR_RETURN(many_, Engine::create(std::move(config)));
    std::vector<std::pair<void*, uint64_t>> ranges;
    for (uint64_t i = 0; i < count; ++i) ranges.emplace_back(pool_->base() + i * kRegionBytes, kRegionBytes);
    KVF_ASSIGN_OR_RETURN(many_regions_, many_->register_memory(ranges, MemoryKind::host, kRemoteReadWrite));
    return fmt::format("{} {}", many_->address(), many_regions_[count / 2].id());
  }

  Result<std::string> parcel(const std::string& line) {
    if (!parcels_) {
      KVF_ASSIGN_OR_RETURN(parcels_, ParcelTarget::create(host_, *pool_));
    }
    return parcels_->answer(line);
  }

  std::string host_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<RawServer> raw_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  Case plan_;
  std::unique_ptr<Engine> many_;
  std::vector<Region> many_regions_;
  std::unique_ptr<ParcelTarget> parcels_;
};

}  // namespace

Status run_target(const TargetOptions& options) {
  KVF_ASSIGN_OR_RETURN(const Address address, parse_address(options.listen, false));
  KVF_ASSIGN_OR_RETURN(const ListeningSocket control, listen_on(options.listen));
  KVF_ASSIGN_OR_RETURN(const auto target, Target::create(address.host, options));
  fmt::print("control {}\n", control.address);
  std::fflush(stdout);
  do {
    KVF_ASSIGN_OR_RETURN(UniqueFd fd, accept_from(control.fd.get()));
    LineChannel channel(std::move(fd));
    while (true) {
      auto line = channel.receive();
      if (!line) break;
      auto answer = target->answer(*line);
      if (!channel.send(answer ? *answer : "error " + answer.error().to_string()).ok()) break;
    }
  } while (!options.once);
  return {};
}

}  // namespace kvferry::bench
