// Usage: kvf-ofi-rma [read|write] [BLOCK BYTES] [SECONDS] [PROVIDER] [HOST]
// What libfabric itself moves between two processes, both sides spinning on their queues: in windows, as fi_rma_bw of
// its fabtests does, which posts 64 blocks and waits for all of them, and with 64 always in flight. The blocks lie in
// 512 MiB, as kvferry-bench's do, and not in a processor's cache. The lines to hold `kvferry-bench --fabric ofi`
// against; defaults are read, 1048576, 3 (of each way), "tcp;ofi_rxm", 127.0.0.1.

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kWindow = 64;
constexpr size_t kMemory = 512 << 20;

struct Asked {
  bool write = false;
  size_t block = 1 << 20;
  double seconds = 3;
  std::string provider = "tcp;ofi_rxm";
  std::string host = "127.0.0.1";
};

// What an initiator must know of the owner.
struct Invitation {
  std::array<char, 256> name{};
  uint64_t key = 0;
  uint64_t base = 0;
};

[[noreturn]] void die(const char* what, ssize_t error) {
  std::fprintf(stderr, "kvf-ofi-rma: %s: %s\n", what, fi_strerror(static_cast<int>(-error)));
  std::exit(1);
}
void must(const char* what, ssize_t result) {
  if (result < 0) die(what, result);
}

// An endpoint with its queue and memory. Ends with the process.
struct Side {
  explicit Side(const Asked& asked) : memory(kMemory, 1) {
    fi_info* hints = fi_allocinfo();
    hints->fabric_attr->prov_name = ::strdup(asked.provider.c_str());
    hints->caps = FI_RMA | FI_MSG;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    hints->tx_attr->op_flags = FI_DELIVERY_COMPLETE;
    must("fi_getinfo", fi_getinfo(FI_VERSION(1, 17), asked.host.c_str(), nullptr, FI_SOURCE, hints, &info));
    must("fi_fabric", fi_fabric(info->fabric_attr, &fabric, nullptr));
    must("fi_domain", fi_domain(fabric, info, &domain, nullptr));
    fi_av_attr addresses{};
    must("fi_av_open", fi_av_open(domain, &addresses, &peers, nullptr));
    fi_cq_attr of_queue{};
    of_queue.format = FI_CQ_FORMAT_CONTEXT;
    must("fi_cq_open", fi_cq_open(domain, &of_queue, &queue, nullptr));
    must("fi_endpoint", fi_endpoint(domain, info, &endpoint, nullptr));
    must("fi_ep_bind", fi_ep_bind(endpoint, &peers->fid, 0));
    must("fi_ep_bind", fi_ep_bind(endpoint, &queue->fid, FI_TRANSMIT | FI_RECV));
    must("fi_enable", fi_enable(endpoint));
    constexpr uint64_t kAll = FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
    must("fi_mr_reg", fi_mr_reg(domain, memory.data(), memory.size(), kAll, 0, 1, 0, &registration, nullptr));
  }
  bool has(int mode) const { return (info->domain_attr->mr_mode & mode) != 0; }

  std::vector<char> memory;
  fi_info* info = nullptr;
  fid_fabric* fabric = nullptr;
  fid_domain* domain = nullptr;
  fid_av* peers = nullptr;
  fid_cq* queue = nullptr;
  fid_ep* endpoint = nullptr;
  fid_mr* registration = nullptr;
};

// Until it is killed.
[[noreturn]] void own(const Asked& asked, int out) {
  Side side(asked);
  Invitation invitation;
  size_t size = invitation.name.size();
  must("fi_getname", fi_getname(&side.endpoint->fid, invitation.name.data(), &size));
  invitation.key = fi_mr_key(side.registration);
  if (side.has(FI_MR_VIRT_ADDR)) invitation.base = reinterpret_cast<uint64_t>(side.memory.data());
  if (::write(out, &invitation, sizeof invitation) != sizeof invitation) die("write", -errno);
  fi_cq_entry entry{};
  while (::getppid() != 1) fi_cq_read(side.queue, &entry, 1);
  std::exit(0);
}

// Moves blocks of a peer's memory.
class Mover {
 public:
  Mover(const Asked& asked, const Invitation& owner) : asked_(asked), owner_(owner), side_(asked) {
    if (fi_av_insert(side_.peers, owner.name.data(), 1, &peer_, 0, nullptr) != 1) die("fi_av_insert", -FI_EINVAL);
    for (size_t i = 0; i < kWindow; ++i) idle_.push_back(i);
  }

  // With `in_windows`, nothing is posted before everything has come. What is in flight at the end is waited for.
  double bytes_per_second(bool in_windows) {
    while (moved_ < kWindow) move(in_windows);  // connecting does not count
    moved_ = 0;
    const auto begin = Clock::now();
    double spent = 0;
    while (spent < asked_.seconds) {
      move(in_windows);
      spent = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    const auto rate = static_cast<double>(moved_ * asked_.block) / spent;
    while (idle_.size() < kWindow) collect();
    moved_ = 0;
    return rate;
  }

 private:
  void move(bool in_windows) {
    if (!in_windows || idle_.size() == kWindow) filling_ = true;
    while (filling_ && !idle_.empty()) {
      const ssize_t posted = post(&contexts_[idle_.back()]);
      if (posted == -FI_EAGAIN) break;
      must("fi_read or fi_write", posted);
      idle_.pop_back();
      next_ = (next_ + 1) % (kMemory / asked_.block);
    }
    if (idle_.empty()) filling_ = false;
    collect();
  }

  ssize_t post(fi_context2* context) {
    char* const local = side_.memory.data() + next_ * asked_.block;
    const uint64_t remote = owner_.base + next_ * asked_.block;
    void* const descriptor = fi_mr_desc(side_.registration);
    return asked_.write ? fi_write(side_.endpoint, local, asked_.block, descriptor, peer_, remote, owner_.key, context)
                        : fi_read(side_.endpoint, local, asked_.block, descriptor, peer_, remote, owner_.key, context);
  }

  void collect() {
    std::array<fi_cq_entry, kWindow> ended{};
    const ssize_t count = fi_cq_read(side_.queue, ended.data(), ended.size());
    if (count == -FI_EAGAIN) return;
    must("fi_cq_read", count);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      idle_.push_back(static_cast<size_t>(static_cast<fi_context2*>(ended[i].op_context) - contexts_.data()));
    moved_ += static_cast<uint64_t>(count);
  }

  const Asked& asked_;
  const Invitation& owner_;
  Side side_;
  fi_addr_t peer_ = FI_ADDR_UNSPEC;
  std::array<fi_context2, kWindow> contexts_{};
  std::vector<size_t> idle_;
  bool filling_ = false;
  size_t next_ = 0;     // block
  uint64_t moved_ = 0;  // blocks
};

}  // namespace

int main(int count, char** words) {
  Asked asked;
  if (count > 1) asked.write = std::string(words[1]) == "write";
  if (count > 2) asked.block = std::strtoull(words[2], nullptr, 10);
  if (count > 3) asked.seconds = std::strtod(words[3], nullptr);
  if (count > 4) asked.provider = words[4];
  if (count > 5) asked.host = words[5];
  const bool known = count < 2 || asked.write || std::string(words[1]) == "read";
  if (!known || count > 6 || asked.block == 0 || asked.block > kMemory || asked.seconds <= 0) {
    std::fputs("Usage: kvf-ofi-rma [read|write] [BLOCK BYTES] [SECONDS] [PROVIDER] [HOST]\n", stderr);
    return 2;
  }
  int ends[2];
  if (::pipe(ends) != 0) die("pipe", -errno);
  const pid_t owner = ::fork();
  if (owner == 0) own(asked, ends[1]);
  ::close(ends[1]);
  Invitation invitation;
  if (::read(ends[0], &invitation, sizeof invitation) != sizeof invitation) die("the owner", -FI_EOTHER);
  Mover mover(asked, invitation);
  for (const bool in_windows : {true, false})
    std::printf("%s %s of %zu bytes, %s%zu in flight: %.2f GB/s\n", asked.provider.c_str(),
                asked.write ? "write" : "read", asked.block, in_windows ? "at most " : "", kWindow,
                mover.bytes_per_second(in_windows) / 1e9);
  ::kill(owner, SIGKILL);
  ::waitpid(owner, nullptr, 0);
  return 0;
}
