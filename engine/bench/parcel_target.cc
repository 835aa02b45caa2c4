#include "engine/bench/parcel_target.h"

#include <fmt/format.h>
#include <poll.h>

#include <map>
#include <sstream>

#include "engine/io/address.h"

namespace kvferry::bench {
namespace {

double microseconds(Duration span) {
  return std::chrono::duration<double, std::micro>(span).count();
}

}  // namespace

KvLayout page_layout(RegionId region, uint32_t pages) {
  KvLayout layout;
  layout.layers_total = 1;
  KvGroup group;
  group.block_tokens = 16;
  group.block_count = pages;
  group.heads_total = group.heads_local = 1;
  group.head_size_k = kParcelPage / 16 / 2;
  group.element_bits = 16;
  layout.groups = {group};
  layout.layers = {dense_layer(0, 0, group, PageShape::head_major, KvOrder::in_block, region, 0)};
  return layout;
}

Result<std::unique_ptr<ParcelTarget>> ParcelTarget::create(const std::string& host, const Pool& pool) {
  std::unique_ptr<ParcelTarget> target(new ParcelTarget(pool));
  EngineConfig config;
  config.engine_id = "bench-parcels";
  config.listen = Address{host, 0}.to_string();
  config.allow_open = true;
  KVF_ASSIGN_OR_RETURN(target->engine_, Engine::create(config));
  KVF_ASSIGN_OR_RETURN(target->region_,
                       target->engine_->register_memory(pool.base(), pool.size(), MemoryKind::host, kPrivate));
  target->parcels_ = std::make_unique<Parcels>(*target->engine_);
  const auto pages = static_cast<uint32_t>(pool.size() / kParcelPage);
  KVF_RETURN_IF_ERROR(target->parcels_->set_cache("bench", page_layout(target->region_.id(), pages)));
  KVF_ASSIGN_OR_RETURN(target->fd_, target->engine_->completion_fd());
  return target;
}

Result<std::string> ParcelTarget::answer(const std::string& line) {
  std::istringstream words(line);
  std::string verb;
  std::string prefix;
  size_t count = 0;
  words >> verb;
  if (verb == "owner") return engine_->address();
  if (verb == "publish") {
    uint32_t pages = 0;
    bool digest = false;
    words >> prefix >> count >> pages >> digest;
    return publish(prefix, count, pages, digest);
  }
  if (verb == "flow") {
    size_t window = 0;
    words >> prefix >> count >> window;
    return flow(prefix, count, window);
  }
  words >> count;
  if (verb == "release") {
    bool force = false;
    words >> force;
    return release(count, force);
  }
  if (verb == "expiry") return expiry(count);
  return Error{ErrorCode::invalid_argument, "unknown verb " + verb};
}

// Pages are taken in turn: what one parcel holds is no longer in a cache when it is taken again.
ParcelSpec ParcelTarget::spec(const std::string& id, uint32_t pages) {
  ParcelSpec made;
  made.transfer_id = id;
  made.tokens = uint64_t{pages} * 16;
  made.fingerprint = "bench";
  const auto all = static_cast<uint32_t>(pool_.size() / kParcelPage);
  BlockList& list = made.blocks.emplace_back();
  for (uint32_t i = 0; i < pages; ++i) list.ids.push_back(next_page_++ % all);
  return made;
}

std::vector<ParcelReleased> ParcelTarget::await_released() {
  pollfd wanted{fd_, POLLIN, 0};
  ::poll(&wanted, 1, 1000);
  engine_->take_completed();
  return parcels_->take_released();
}

Result<std::string> ParcelTarget::publish(const std::string& prefix, size_t count, uint32_t pages, bool digest) {
  for (size_t i = 0; i < count; ++i) {
    ParcelSpec made = spec(prefix + std::to_string(i), pages);
    made.digest = digest;
    KVF_RETURN_IF_ERROR(parcels_->publish(std::move(made)));
  }
  parcels_->take_released();  // of what went before
  return std::string("ok");
}

Result<std::string> ParcelTarget::flow(const std::string& prefix, size_t count, size_t window) {
  const SystemClock clock;
  parcels_->take_released();
  const TimePoint began = clock.now();
  size_t published = 0;
  for (size_t settled = 0; settled < count;) {
    while (published < count && published - settled < window)
      KVF_RETURN_IF_ERROR(parcels_->publish(spec(prefix + std::to_string(published++), 1)));
    for (const ParcelReleased& one : await_released())
      if (one.transfer_id.starts_with(prefix)) {
        if (one.why != ReleaseReason::settled)
          return Error{ErrorCode::internal, one.transfer_id + " ended as " + std::string(to_string(one.why))};
        ++settled;
      }
    if (clock.now() - began > std::chrono::seconds(60)) return Error{ErrorCode::deadline_exceeded, "no flow"};
  }
  return fmt::format("{}", seconds(clock.now() - began));
}

Result<std::string> ParcelTarget::release(size_t count, bool force) {
  const SystemClock clock;
  Samples samples;
  parcels_->take_released();
  for (size_t i = 0; i < count; ++i) {
    const std::string id = (force ? "forced" : "release") + std::to_string(i);
    KVF_RETURN_IF_ERROR(parcels_->publish(spec(id, 1)));
    const TimePoint began = clock.now();
    parcels_->release(id, force);
    while (await_released().empty()) {
    }
    samples.add(microseconds(clock.now() - began));
  }
  return fmt::format("{} {}", samples.median(), samples.percentile(0.99));
}

Result<std::string> ParcelTarget::expiry(size_t count) {
  const SystemClock clock;
  Samples samples;
  parcels_->take_released();
  std::map<std::string, TimePoint> due;
  for (size_t i = 0; i < count; ++i) {
    ParcelSpec made = spec("expiry" + std::to_string(i), 1);
    made.lease = std::chrono::microseconds(20'000 + (i * 7919) % 100'000);
    due.emplace(made.transfer_id, clock.now() + made.lease);
    KVF_RETURN_IF_ERROR(parcels_->publish(std::move(made)));
  }
  double worst = 0;
  while (!due.empty()) {
    for (const ParcelReleased& one : await_released()) {
      const auto entry = due.extract(one.transfer_id);
      if (entry.empty()) continue;
      const double late = microseconds(clock.now() - entry.mapped());
      worst = std::max(worst, late);
      samples.add(late);
    }
  }
  return fmt::format("{} {}", samples.median(), worst);
}

}  // namespace kvferry::bench
