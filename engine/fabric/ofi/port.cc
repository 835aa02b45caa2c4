#include "engine/fabric/ofi/port.h"

#include <mutex>
#include <utility>

#include "engine/fabric/ofi/fabric.h"
#include "engine/fabric/ofi/process.h"

namespace kvferry::ofi {
namespace {

constexpr size_t kEntries = 64;      // read at once
constexpr uint32_t kMostTold = 512;  // in one turn (I7)

}  // namespace

std::unique_ptr<Port> Port::open(kvf_fabric& fabric, User& user, kvf_text why) {
  std::unique_ptr<Port> made(new Port(fabric, user));
  return made->start(why) == KVF_OK ? std::move(made) : nullptr;
}

int32_t Port::start(kvf_text why) {
  take_complaint();  // of earlier calls
  const auto failed = [&](const char* what, int error) {
    return say(why, fabric_.provider() + ": " + what + take_complaint(), error);
  };
  fi_av_attr addresses{};
  addresses.type = FI_AV_TABLE;
  addresses.count = 4;
  if (const int error = fi_av_open(fabric_.domain(), &addresses, addresses_.out(), nullptr); error != 0)
    return failed("cannot make a table of addresses", error);
  fi_cq_attr queue{};
  queue.format = FI_CQ_FORMAT_CONTEXT;
  queue.size = fabric_.info().tx_attr->size + fabric_.info().rx_attr->size;
  queue.wait_obj = fabric_.polls() ? FI_WAIT_NONE : FI_WAIT_FD;
  if (const int error = fi_cq_open(fabric_.domain(), &queue, queue_.out(), nullptr); error != 0)
    return failed("cannot make a queue that wakes a sleeping process", error);
  if (const int error = make_endpoint(); error != 0) return failed("cannot make an endpoint", error);
  int error = fi_ep_bind(endpoint_.get(), &addresses_.get()->fid, 0);
  if (error == 0) error = fi_ep_bind(endpoint_.get(), &queue_.get()->fid, FI_TRANSMIT | FI_RECV);
  if (error == 0) error = fi_enable(endpoint_.get());
  if (error != 0) return failed("cannot set up an endpoint", error);
  if (fabric_.polls()) return fabric_.watch(*this) ? KVF_OK : KVF_FAILED;
  if (error = fi_control(&queue_.get()->fid, FI_GETWAIT, &descriptor_); error != 0)
    return failed("its queues cannot wake a sleeping process", error);
  return fabric_.watch(*this) ? KVF_OK : failed("cannot watch a queue", -errno);
}

int Port::make_endpoint() {
  if (!fabric_.polls()) return fi_endpoint(fabric_.domain(), fabric_.mutable_info(), endpoint_.out(), nullptr);
  // The process's first one of shared memory takes signals of the whole process.
  static std::mutex mutex;
  static bool first = true;
  const std::lock_guard lock(mutex);
  if (first) keep_signal_handlers();
  const int error = fi_endpoint(fabric_.domain(), fabric_.mutable_info(), endpoint_.out(), nullptr);
  if (first) restore_signal_handlers();
  if (error != 0) return error;
  first = false;
  Graves::one_more();
  counted_ = true;
  return 0;
}

bool Port::may_have_peers_here() {
  if (counted_ && !shares_process_) shares_process_ = Graves::reserve();
  return !counted_ || shares_process_;
}

Name Port::name() const {
  std::vector<uint8_t> bytes(512);
  size_t size = bytes.size();
  if (fi_getname(&endpoint_.get()->fid, bytes.data(), &size) != 0) return {};
  bytes.resize(size);
  return Name(std::move(bytes));
}

// A peer's word, of which libfabric reads as much as a name of this side's has.
fi_addr_t Port::add(const Name& peer) {
  fi_addr_t address = FI_ADDR_UNSPEC;
  const Name own = name();
  const bool alike = fabric_.polls() ? peer.is_shared_memory()
                                     : peer.bytes().size() == own.bytes().size() && peer.is_socket() == own.is_socket();
  if (counted_ && peer.is_of_this_process() && !may_have_peers_here()) return FI_ADDR_UNSPEC;
  const bool added = alike && fi_av_insert(addresses_.get(), peer.bytes().data(), 1, &address, 0, nullptr) == 1;
  return added ? address : FI_ADDR_UNSPEC;
}

void Port::remove(fi_addr_t peer) {
  fi_av_remove(addresses_.get(), &peer, 1, 0);
  fabric_.touch(*this);
}

// It may use up what would have made the descriptor readable.
ssize_t Port::post(Request& request) {
  fabric_.stir(*this);
  void* const context = &request.room;
  switch (request.kind) {
    case Request::Kind::read:
      return fi_read(endpoint_.get(), request.local, request.length, request.descriptor, request.peer, request.remote,
                     request.key, context);
    case Request::Kind::write:
      return fi_write(endpoint_.get(), request.local, request.length, request.descriptor, request.peer, request.remote,
                      request.key, context);
    case Request::Kind::send:
      return fi_send(endpoint_.get(), request.local, request.length, request.descriptor, request.peer, context);
    case Request::Kind::receive:
      return fi_recv(endpoint_.get(), request.local, request.length, request.descriptor, FI_ADDR_UNSPEC, context);
  }
  return -FI_EINVAL;
}

// Few providers end more than receives.
void Port::cancel(Request& request) {
  static_cast<void>(fi_cancel(&endpoint_.get()->fid, &request.room));
  fabric_.stir(*this);
}

uint32_t Port::read_queue() {
  uint32_t told = 0;
  fi_cq_entry entries[kEntries];
  while (queue_ && told < kMostTold) {
    const ssize_t count = fi_cq_read(queue_.get(), entries, kEntries);
    if (count == -FI_EAVAIL) {
      if (!tell_error()) break;
      ++told;
      continue;
    }
    if (count <= 0) break;
    for (ssize_t i = 0; i < count; ++i)
      if (entries[i].op_context != nullptr) user_.ended(*static_cast<Request*>(entries[i].op_context), KVF_OK, "");
    told += static_cast<uint32_t>(count);
  }
  return told;
}

// What goes wrong with one operation goes wrong with the connection: providers do not heal it.
bool Port::tell_error() {
  fi_cq_err_entry error{};
  if (fi_cq_readerr(queue_.get(), &error, 0) < 1) return false;
  char words[128] = "";
  // ofi_rxm asks the queue's endpoint, and does not expect that it has none any more.
  if (endpoint_) fi_cq_strerror(queue_.get(), error.prov_errno, error.err_data, words, sizeof words);
  std::string why = fabric_.provider() + ": " + fi_strerror(error.err);
  if (words[0] != '\0' && why.find(words) == std::string::npos) why += std::string(", ") + words;
  if (error.op_context == nullptr) return user_.broke(why), true;
  Request& request = *static_cast<Request*>(error.op_context);
  user_.ended(request, KVF_LOST, why);
  return true;
}

bool Port::may_sleep() {
  if (fabric_.polls()) return true;  // who puts something there rings
  fid* const queue = &queue_.get()->fid;
  fid* queues[] = {queue};
  return fi_trywait(fabric_.fabric(), queues, 1) == 0;
}

bool Port::close() {
  fabric_.forget(*this);
  while (read_queue() > 0) {
  }
  if (counted_ && shares_process_) {
    counted_ = false;
    Graves::one_less({fabric_.opened(), std::move(addresses_), std::move(queue_), std::move(endpoint_)});
    return true;
  }
  if (!endpoint_.close()) return false;
  while (read_queue() > 0) {  // ends that closing has brought
  }
  queue_.close();
  addresses_.close();
  if (std::exchange(counted_, false)) Graves::one_less({});
  return true;
}

}  // namespace kvferry::ofi
