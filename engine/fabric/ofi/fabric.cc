#include "engine/fabric/ofi/fabric.h"

#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "engine/fabric/ofi/process.h"
#include "engine/fabric/ofi/range.h"

using kvferry::ofi::Bell;
using kvferry::ofi::Handle;
using kvferry::ofi::Port;
using kvferry::ofi::RangeAttributes;
using kvferry::ofi::say;
using kvferry::ofi::Tended;

namespace {

constexpr long kTick = 50'000'000;      // ns, between two looks at what wakes nobody
constexpr long kShortTick = 1'000'000;  // where nothing does
constexpr uint64_t kRemote = FI_REMOTE_READ | FI_REMOTE_WRITE;
// What this fabric can do with: memory registered at both ends, addresses of it, keys that the provider makes.
constexpr int kMemoryModes = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
constexpr size_t kSends = 256;  // I6: of one connection in flight; what is more waits in its backlog
constexpr size_t kReceives = 64;

}  // namespace

int32_t kvf_fabric::open(const kvf_host& host, const kvf_open_params& params, kvf_fabric** out, kvf_facts& facts,
                         kvf_text why) {
  std::unique_ptr<kvf_fabric> made(new kvf_fabric(host, params));
  if (kvferry::ofi::begin_process(made->settings_.variables(), why) != KVF_OK) return KVF_FAILED;
  if (made->start(params.host, why) != KVF_OK) return KVF_FAILED;
  const uint32_t version = fi_version();
  std::snprintf(facts.description, sizeof facts.description, "libfabric %u.%u, provider %s, domain %s",
                FI_MAJOR(version), FI_MINOR(version), made->provider().c_str(), made->info_->domain_attr->name);
  std::snprintf(facts.device, sizeof facts.device, "%s", made->info_->domain_attr->name);
  facts.enforces_keys = made->settings_.is_rdma() ? 1 : 0;
  facts.longest_operation = made->info_->ep_attr->max_msg_size;
  *out = made.release();
  return KVF_OK;
}

int32_t kvf_fabric::start(const char* host, kvf_text why) {
  kvferry::ofi::take_complaint();  // of earlier calls
  if (find(host, why) != KVF_OK) return KVF_FAILED;
  const auto failed = [&](const char* what, int error) {
    return say(why, provider() + ": " + what + kvferry::ofi::take_complaint(), error);
  };
  if (const int error = fi_fabric(info_->fabric_attr, opened_->fabric.out(), nullptr); error != 0)
    return failed("cannot open the fabric", error);
  if (const int error = fi_domain(fabric(), info_.get(), opened_->domain.out(), nullptr); error != 0)
    return failed("cannot open the device", error);
  epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
  clock_ = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  if (epoll_ < 0 || clock_ < 0 || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, clock_, &event) != 0)
    return failed("no descriptor to sleep on", -errno);
  if (!polls()) return KVF_OK;
  kvferry::ofi::Name::remove_leftovers();
  bell_ = kvferry::ofi::Bell::hang({});
  return bell_ && watch(*bell_) ? KVF_OK : failed("no socket to be woken by", -errno);
}

// The first endpoint that the provider offers at the host, with memory of GPUs where one takes that.
int32_t kvf_fabric::find(const char* host, kvf_text why) {
  if (settings_.uses_sockets() && !kvferry::plugin_kit::SocketAddress::parse(host, 0).ok())
    return say(why, "not a numeric address to listen on", -FI_EINVAL);
  if (!polls() && look_for(host, FI_RMA | FI_MSG | FI_HMEM, kMemoryModes | FI_MR_HMEM) == 0) return KVF_OK;
  kvferry::ofi::take_complaint();
  // Where addresses are real ones, peers that share memory look at no keys.
  const int error = look_for(host, FI_RMA | FI_MSG, polls() ? 0 : kMemoryModes);
  if (error == 0) return KVF_OK;
  const uint32_t version = fi_version();
  return say(why,
             "libfabric " + std::to_string(FI_MAJOR(version)) + "." + std::to_string(FI_MINOR(version)) +
                 " finds no device for the provider \"" + provider() + "\" at " + host + kvferry::ofi::take_complaint(),
             error);
}

int kvf_fabric::look_for(const char* host, uint64_t capabilities, int memory_modes) {
  const kvferry::ofi::Info hints(fi_allocinfo());
  if (!hints) return -FI_ENOMEM;
  hints->fabric_attr->prov_name = ::strdup(provider().c_str());  // fi_freeinfo() frees it
  hints->caps = capabilities;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->mr_mode = memory_modes;
  hints->domain_attr->threading = FI_THREAD_SAFE;  // memory is registered by callers' threads
  hints->tx_attr->op_flags = FI_DELIVERY_COMPLETE;
  hints->tx_attr->size = kSends;
  hints->rx_attr->size = kReceives;
  const std::string own = kvferry::ofi::Name::of_this_process();
  const char* node = polls() ? own.c_str() : nullptr;
  if (settings_.uses_sockets()) {
    const bool v6 = kvferry::plugin_kit::SocketAddress::parse(host, 0).is_v6();
    hints->addr_format = v6 ? FI_SOCKADDR_IN6 : FI_SOCKADDR_IN;
    node = host;
  }
  fi_info* found = nullptr;
  const uint32_t interface = kvferry::ofi::wanted_interface(fi_version());
  const int error = fi_getinfo(interface, node, nullptr, node != nullptr ? FI_SOURCE : 0, hints.get(), &found);
  info_.reset(found);
  return error;
}

kvf_fabric::~kvf_fabric() {
  door_.reset();
  for (kvf_memory* memory : std::set<kvf_memory*>(memory_)) unmap(memory);
  if (clock_ >= 0) ::close(clock_);
  if (epoll_ >= 0) ::close(epoll_);
}

int32_t kvf_fabric::listen(kvf_text address, kvf_text why) {
  door_ = kvferry::ofi::Door::open(*this, why);
  if (!door_) return KVF_FAILED;
  const std::string text = door_->name().to_text();
  if (text.size() >= address.size) return say(why, provider() + ": an address that is too long", -FI_ETOOSMALL);
  std::memcpy(address.data, text.c_str(), text.size() + 1);
  if (!polls()) return KVF_OK;
  door_bell_ = kvferry::ofi::Bell::hang(door_->name());
  return door_bell_ && watch(*door_bell_) ? KVF_OK : say(why, provider() + ": no socket to be woken by", -errno);
}

// ---- memory

// Keys that are ours to choose are all that keeps others out: nobody shall guess them.
int kvf_fabric::register_memory(const kvf_range& range, uint64_t access, Handle<fid_mr>& out) {
  int error = -FI_ENOKEY;
  for (int tries = 0; tries < 3 && error == -FI_ENOKEY; ++tries) {
    uint64_t key = 0;
    if ((info_->domain_attr->mr_mode & FI_MR_PROV_KEY) == 0 && ::getrandom(&key, sizeof key, 0) != sizeof key)
      return -errno;
    const size_t bytes = info_->domain_attr->mr_key_size;
    if (bytes < sizeof key) key &= (uint64_t{1} << (8 * bytes)) - 1;
    const RangeAttributes attributes(range, access, key, info_->fabric_attr->api_version);
    error = fi_mr_regattr(domain(), attributes.get(), attributes.flags(), out.out());
  }
  return error;
}

int32_t kvf_fabric::map(const kvf_range& range, kvf_memory** out, kvf_text why) {
  if (range.kind == KVF_CUDA && (info_->caps & FI_HMEM) == 0)
    return say(why, provider() + ": offers no FI_HMEM, without which memory of kind cuda cannot be registered",
               -FI_ENOSYS);
  if (range.kind != KVF_HOST && range.kind != KVF_CUDA)
    return say(why, provider() + ": memory of a kind that this fabric does not know", -FI_ENOSYS);
  kvferry::ofi::take_complaint();
  auto memory = std::make_unique<kvf_memory>();
  memory->base = reinterpret_cast<uint64_t>(range.base);
  kvf_range tried = range;
  int error = register_memory(tried, FI_READ | FI_WRITE | kRemote, memory->registration);
  if (error != 0 && std::exchange(tried.dmabuf, -1) >= 0)  // a provider that asks the driver itself
    error = register_memory(tried, FI_READ | FI_WRITE | kRemote, memory->registration);
  if (error != 0)
    return say(why,
               provider() +
                   (range.kind == KVF_CUDA ? ": cannot register memory of kind cuda"
                                           : ": cannot register the memory (a low `ulimit -l`?)") +
                   kvferry::ofi::take_complaint(),
               error);
  *out = memory.release();
  const std::lock_guard lock(memory_mutex_);
  memory_.insert(*out);
  return KVF_OK;
}

void kvf_fabric::unmap(kvf_memory* memory) {
  {
    const std::lock_guard lock(memory_mutex_);
    memory_.erase(memory);
  }
  delete memory;
}

int32_t kvf_fabric::pack_key(const kvf_memory& memory, void* out, size_t* size, kvf_text why) const {
  kvf_key key;
  key.key = fi_mr_key(memory.registration.get());
  key.base = (info_->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0 ? 0 : memory.base;
  if (key.key == FI_KEY_NOTAVAIL) return say(why, provider() + ": a key that is longer than 64 bits", -FI_ENOKEY);
  const bool fits = sizeof key <= *size;
  if (fits) std::memcpy(out, &key, sizeof key);
  *size = sizeof key;
  return fits ? KVF_OK : say(why, "the key is longer than the engine takes", -FI_ETOOSMALL);
}

int32_t kvf_fabric::register_own(void* base, size_t length, uint64_t access, Handle<fid_mr>& out, kvf_text why) {
  if (!needs_descriptors()) return KVF_OK;
  const int error = register_memory({base, length, KVF_HOST, -1, -1, 0}, access, out);
  return error == 0 ? KVF_OK : say(why, provider() + ": cannot register memory", error);
}

// ---- the loop

bool kvf_fabric::watch(Port& port) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &port;
  touch(port);
  if (polls()) return polled_.insert(&port).second;
  return ::epoll_ctl(epoll_, EPOLL_CTL_ADD, port.descriptor(), &event) == 0;
}

bool kvf_fabric::watch(const Bell& bell) {
  epoll_event event{};
  event.events = EPOLLIN;
  return ::epoll_ctl(epoll_, EPOLL_CTL_ADD, bell.descriptor(), &event) == 0;
}

void kvf_fabric::forget(Port& port) {
  busy_.erase(&port);
  polled_.erase(&port);
  if (port.descriptor() >= 0) ::epoll_ctl(epoll_, EPOLL_CTL_DEL, port.descriptor(), nullptr);
}

bool kvf_fabric::look_who_is_ready() {
  bool ticked = false;
  epoll_event events[32];
  const int count = ::epoll_wait(epoll_, events, 32, 0);
  for (int i = 0; i < count; ++i) {
    if (events[i].data.ptr != nullptr) {
      touch(*static_cast<Port*>(events[i].data.ptr));
      continue;
    }
    uint64_t ticks = 0;
    if (::read(clock_, &ticks, sizeof ticks) != sizeof ticks) continue;  // a bell, which is heard by itself
    ticked = true;
    clock_set_ = false;
  }
  return ticked;
}

bool kvf_fabric::hear_bells() {
  const bool at_door = door_bell_ != nullptr && door_bell_->heard();
  return (bell_ != nullptr && bell_->heard()) || at_door;
}

uint32_t kvf_fabric::progress() {
  // A tick counts: whoever is restless needs the next one, which arm() sets.
  const bool ticked = look_who_is_ready();
  const bool rung = hear_bells();
  if (ticked || rung) busy_.insert(polled_.begin(), polled_.end());
  uint32_t done = ticked || rung ? 1 : 0;
  for (Port* port : std::vector<Port*>(busy_.begin(), busy_.end()))
    if (busy_.count(port) > 0) done += port->read_queue();
  stirred_ |= ticked || done > (rung ? 1 : 0);
  for (Tended* tended : std::vector<Tended*>(restless_.begin(), restless_.end()))
    if (restless_.count(tended) > 0 && !tended->tend()) restless_.erase(tended);
  stirred_ = false;
  if (door_bell_) door_bell_->ring_back([this](uint64_t number) { return door_->knows(number); });
  return done;
}

int32_t kvf_fabric::arm() {
  for (auto port = busy_.begin(); port != busy_.end(); port = busy_.erase(port))
    if (!(*port)->may_sleep()) return KVF_BUSY;
  if (!restless_.empty() && !clock_set_) {
    itimerspec when{};
    when.it_value.tv_nsec = polls() ? kShortTick : kTick;
    clock_set_ = ::timerfd_settime(clock_, 0, &when, nullptr) == 0;
  }
  return KVF_OK;
}
