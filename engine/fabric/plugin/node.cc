#include "engine/fabric/plugin/node.h"

#include <fmt/format.h>

namespace kvferry::plugin {
namespace {

constexpr Duration kTurn = std::chrono::microseconds(500);  // of progress, before others have theirs (I7)
constexpr size_t kMaxKeyBytes = 1024;                       // I6: of a region, here and in each peer's table
constexpr size_t kMaxAddressBytes = 160;                    // "[v6]:port", or what else a library calls its own

}  // namespace

Node::Node(EpollLoop& loop, std::shared_ptr<const Library> library, size_t rail, uint64_t client,
           std::shared_ptr<const Topology> topology)
    : loop_(loop),
      library_(std::move(library)),
      table_(library_->table()),
      rail_(rail),
      label_(rail == 0 ? table_.name : fmt::format("{}#{}", table_.name, rail)),
      client_(client),
      host_{this,
            [](void* self, uint64_t operation, int32_t result, const char* why) {
              static_cast<Node*>(self)->news_.push_back({operation, 0, result, result == KVF_OK ? "" : why});
            },
            [](void* self, uint64_t endpoint, const char* why) {
              static_cast<Node*>(self)->news_.push_back({0, endpoint, KVF_LOST, why});
            },
            [](void* self, uint64_t peer) { return int32_t{static_cast<Node*>(self)->guests_.admits(peer)}; }},
      topology_(std::move(topology)),
      guests_([this](uint64_t peer) {
        schedule();
        return table_.fence(fabric_, peer) == KVF_OK;
      }) {}

Result<std::unique_ptr<Node>> Node::open(EpollLoop& loop, std::shared_ptr<const Library> library,
                                         const std::vector<FabricSetting>& settings, const std::string& host,
                                         size_t rail, uint64_t client, std::shared_ptr<const Topology> topology) {
  std::unique_ptr<Node> node(new Node(loop, std::move(library), rail, client, std::move(topology)));
  if (Status status = node->start(settings, host); !status.ok()) return std::move(status).error();
  return node;
}

Status Node::start(const std::vector<FabricSetting>& settings, const std::string& host) {
  std::vector<kvf_setting> ours;
  for (const FabricSetting& setting : settings)
    if (setting.fabric == table_.name) ours.push_back({setting.name.c_str(), setting.value.c_str()});
  const kvf_open_params params{ours.data(), ours.size(), client_, host.c_str()};
  const auto not_viable = [this](const Why& why) {
    return Error{ErrorCode::unsupported, fmt::format("fabric \"{}\" is not viable here", label_), why.str()};
  };
  Why why;
  if (table_.open(&host_, &params, &fabric_, &facts_, why.text()) != KVF_OK) return not_viable(why);
  char address[kMaxAddressBytes] = "";
  if (table_.listen(fabric_, {address, sizeof address}, why.text()) != KVF_OK) return not_viable(why);
  address_ = address;
  facts_.device[sizeof facts_.device - 1] = '\0';
  device_ = topology_->network_device(facts_.device);
  wake_fd_ = table_.wake_fd(fabric_);
  KVF_RETURN_IF_ERROR(loop_.watch(wake_fd_, EPOLLIN, this));
  schedule();
  return {};
}

Node::~Node() {
  *alive_ = false;
  if (wake_fd_ >= 0) loop_.unwatch(wake_fd_);
  if (fabric_ != nullptr) table_.close(fabric_);
  tell();  // what no connection's end has ended
}

// ---- memory

Result<RegionMapper::Mapping> Node::map(const FabricRange& range) {
  static_assert(KVF_HOST == static_cast<int>(MemoryKind::host) && KVF_CUDA == static_cast<int>(MemoryKind::cuda));
  const kvf_range described{range.base,   range.length, static_cast<int32_t>(range.kind),
                            range.device, range.dmabuf, range.dmabuf_offset};
  Why why;
  kvf_memory* memory = nullptr;
  if (table_.map(fabric_, &described, &memory, why.text()) != KVF_OK)
    return Error{ErrorCode::unavailable, fmt::format("fabric \"{}\" cannot register memory", label_), why.str()};
  std::string key(kMaxKeyBytes, '\0');
  size_t size = key.size();
  if (table_.pack_key(fabric_, memory, key.data(), &size, why.text()) != KVF_OK) {
    table_.unmap(fabric_, memory);
    return Error{ErrorCode::unavailable, fmt::format("fabric \"{}\" cannot make a key", label_), why.str()};
  }
  key.resize(size);
  return Mapping{memory, std::move(key)};
}

void Node::unmap(void* handle) {
  table_.unmap(fabric_, static_cast<kvf_memory*>(handle));
}

// ---- the loop

uint64_t Node::add(EndpointUser* user) {
  users_.emplace(next_endpoint_, user);
  return next_endpoint_++;
}

void Node::tell() {
  while (!news_.empty()) {
    const News news = std::move(news_.front());
    news_.pop_front();
    if (news.operation != 0)
      reinterpret_cast<Posted*>(news.operation)->ended(news.result, news.why);
    else if (const auto found = users_.find(news.endpoint); found != users_.end())
      found->second->lost(news.why);
  }
}

// It may have used up what would have woken the loop.
uint32_t Node::turn() {
  const uint32_t done = table_.progress(fabric_);
  tell();
  schedule();
  return done;
}

void Node::schedule() {
  if (std::exchange(scheduled_, true)) return;
  loop_.before_sleep([this, alive = alive_] {
    if (!*alive) return;
    scheduled_ = false;
    run();
  });
}

// Until the descriptor is armed the loop must not sleep; nor before one more look behind that: what came between the
// last look and the arming may wake nobody, as a queue of verbs tells only of what comes later.
void Node::run() {
  const TimePoint until = loop_.now() + kTurn;
  bool armed = false;
  do {
    const uint32_t done = table_.progress(fabric_);
    tell();
    if (done == 0 && armed) return;
    armed = done == 0 && table_.arm(fabric_) == KVF_OK;
  } while (loop_.now() < until);
  loop_.defer([this, alive = alive_] {
    if (*alive) schedule();
  });
}

std::string Node::describe() const {
  const std::string numa = device_.place.numa_node < 0 ? "" : fmt::format(", NUMA node {}", device_.place.numa_node);
  return fmt::format("{}{}; listens on {}; {}; {} peers cut off", facts_.description, numa, address_,
                     enforces_keys() ? "one-sided" : "emulated: for trusted peers only", guests_.cut_off());
}

}  // namespace kvferry::plugin
