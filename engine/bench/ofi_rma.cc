// Usage: kvf-ofi-rma [read|write] [BLOCK BYTES] [SECONDS] [PROVIDER] [HOST]
// What libfabric itself moves between two processes, as fi_rma_bw of its fabtests does: 64 blocks in flight, both sides
// spinning on their queues; but the blocks lie in 512 MiB, as kvferry-bench's do, and not in a processor's cache. The
// line to hold `kvferry-bench --fabric ofi` against; defaults are read, 1048576, 3, "tcp;ofi_rxm", 127.0.0.1.

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

double bytes_per_second(const Asked& asked, const Invitation& owner) {
  Side side(asked);
  fi_addr_t peer = FI_ADDR_UNSPEC;
  if (fi_av_insert(side.peers, owner.name.data(), 1, &peer, 0, nullptr) != 1) die("fi_av_insert", -FI_EINVAL);
  std::array<fi_context2, kWindow> contexts{};
  std::vector<size_t> idle;
  for (size_t i = 0; i < kWindow; ++i) idle.push_back(i);
  size_t next = 0;
  const auto post = [&](size_t at) {
    char* const local = side.memory.data() + next * asked.block;
    const uint64_t remote = owner.base + next * asked.block;
    void* const descriptor = fi_mr_desc(side.registration);
    return asked.write ? fi_write(side.endpoint, local, asked.block, descriptor, peer, remote, owner.key, &contexts[at])
                       : fi_read(side.endpoint, local, asked.block, descriptor, peer, remote, owner.key, &contexts[at]);
  };
  uint64_t moved = 0;
  auto begin = Clock::time_point();  // of the first whole window's end: connecting does not count
  std::array<fi_cq_entry, kWindow> ended{};
  for (;;) {
    while (!idle.empty()) {
      const ssize_t posted = post(idle.back());
      if (posted == -FI_EAGAIN) break;
      must("fi_read or fi_write", posted);
      idle.pop_back();
      next = (next + 1) % (kMemory / asked.block);
    }
    const ssize_t count = fi_cq_read(side.queue, ended.data(), ended.size());
    if (count == -FI_EAGAIN) continue;
    must("fi_cq_read", count);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      idle.push_back(static_cast<size_t>(static_cast<fi_context2*>(ended[i].op_context) - contexts.data()));
    moved += static_cast<uint64_t>(count);
    const auto now = Clock::now();
    if (begin == Clock::time_point()) {
      if (moved >= kWindow) begin = now, moved = 0;
      continue;
    }
    const double spent = std::chrono::duration<double>(now - begin).count();
    if (spent >= asked.seconds) return static_cast<double>(moved * asked.block) / spent;
  }
}

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
  const double rate = bytes_per_second(asked, invitation);
  ::kill(owner, SIGKILL);
  ::waitpid(owner, nullptr, 0);
  std::printf("%s %s of %zu bytes, %zu in flight: %.2f GB/s\n", asked.provider.c_str(), asked.write ? "write" : "read",
              asked.block, kWindow, rate / 1e9);
  return 0;
}
