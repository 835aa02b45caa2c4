#include "engine/fabric/ofi/endpoint.h"

#include <sys/random.h>

#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/fabric/ofi/fabric.h"

using kvferry::ofi::Letter;
using kvferry::ofi::Mailbox;
using kvferry::ofi::Name;
using kvferry::ofi::Port;
using kvferry::ofi::say;

// ---- making the connection

int32_t kvf_endpoint::connect(kvf_fabric& fabric, const char* address, uint64_t token, kvf_endpoint** out,
                              kvf_text why) {
  std::unique_ptr<kvf_endpoint> made(new kvf_endpoint(fabric, token));
  const int32_t result = made->start(address, why);
  if (result == KVF_OK)
    *out = made.release();
  else
    made->disconnect();
  return result;
}

int32_t kvf_endpoint::start(const char* address, kvf_text why) {
  port_ = Port::open(fabric_, *this, why);
  if (!port_) return KVF_FAILED;
  door_name_ = Name::parse(address);
  door_ = port_->add(door_name_);
  if (door_ == FI_ADDR_UNSPEC && door_name_.is_of_this_process() && !port_->may_have_peers_here())
    return say(why, fabric_.provider() + kvferry::ofi::Graves::kFull, -FI_ENOSPC);
  if (door_ == FI_ADDR_UNSPEC) return say(why, fabric_.provider() + ": not an address: " + address, -FI_EINVAL);
  Name own = port_->name();
  if (own.is_wildcard()) own = own.as_seen_by(door_name_);
  uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number ||
      !Letter::make(hello_.letter, Letter::Kind::hello, fabric_.client(), number, own))
    return say(why, fabric_.provider() + ": an endpoint's name that is too long", -FI_ETOOSMALL);
  if (hello_.prepare(fabric_, Request::Kind::send, why) != KVF_OK) return KVF_FAILED;
  if (answer_.prepare(fabric_, Request::Kind::receive, why) != KVF_OK) return KVF_FAILED;
  thanks_.letter = hello_.letter;
  thanks_.letter.kind = Letter::Kind::thanks;
  if (thanks_.prepare(fabric_, Request::Kind::send, why) != KVF_OK) return KVF_FAILED;
  hello_.request.peer = door_;
  if (const ssize_t error = port_->post(answer_.request); error != 0)
    return say(why, fabric_.provider() + ": cannot receive", error);
  fabric_.want_turns(*this);
  return KVF_OK;
}

// False: not yet. The provider connects meanwhile, and tells nobody when it cannot: the engine's patience ends that.
bool kvf_endpoint::send(Mailbox& box) {
  const ssize_t result = port_->post(box.request);
  if (result != 0 && result != -FI_EAGAIN)
    lose(fabric_.provider() + ": cannot send to " + door_name_.to_text() + ": " +
         fi_strerror(static_cast<int>(-result)));
  return result == 0;
}

void kvf_endpoint::on_answer() {
  const Letter& letter = answer_.letter;
  if (state_ != State::asking && state_ != State::dialling) return;
  if (!letter.is_sound() || letter.number != hello_.letter.number) {  // somebody else's
    answer_.letter = {};
    if (port_->post(answer_.request) != 0) lose(fabric_.provider() + ": cannot receive");
    return;
  }
  if (letter.kind != Letter::Kind::welcome)
    return lose(fabric_.provider() + ": the peer does not admit this engine now");
  Name peer = letter.writer();
  if (peer.is_wildcard()) peer = peer.at_host_of(door_name_);
  peer_ = port_->add(peer);
  if (peer_ == FI_ADDR_UNSPEC) return lose(fabric_.provider() + ": the peer's name cannot be used");
  thanks_.request.peer = peer_;
  state_ = State::thanking;
  port_->remove(door_);
  fabric_.want_turns(*this);
}

// From here on a provider that takes nothing has lost the connection.
void kvf_endpoint::on_thanked(int32_t result, const std::string& why) {
  if (result != KVF_OK) return lose(why);
  if (state_ == State::thanking) state_ = State::standing;
  tell_flushes();
}

// Where queues wake nobody, the owner is rung at for as long as something is under way.
bool kvf_endpoint::tend() {
  if (state_ == State::dialling && send(hello_)) state_ = State::asking;
  if (state_ == State::thanking && !thanked_) thanked_ = send(thanks_);
  if (state_ == State::standing) drain_backlog();
  if (fabric_.polls()) {
    const bool waits = state_ != State::lost && (state_ != State::standing || !transfers_.empty());
    if (waits && !fabric_.ring(door_name_, hello_.letter.number) && state_ == State::standing)
      lose(fabric_.provider() + ": the peer has ended the connection");
    return waits;
  }
  return state_ == State::dialling || (state_ == State::thanking && !thanked_) ||
         (state_ == State::standing && !backlog_.empty());
}

void kvf_endpoint::lose(const std::string& why) {
  if (std::exchange(state_, State::lost) == State::lost) return;
  why_lost_ = why;
  fabric_.host().lost(fabric_.host().self, token_, why.c_str());
}

int32_t kvf_endpoint::disconnect() {
  state_ = State::lost;
  const bool gone = port_ == nullptr || port_->close();
  fabric_.want_none(*this);
  if (!gone) return KVF_FAILED;
  const std::string why = why_lost_.empty() ? fabric_.provider() + ": the connection was ended" : why_lost_;
  while (!transfers_.empty()) tell(transfers_.front(), KVF_LOST, why);
  for (const Flush& flush : std::exchange(flushes_, {}))
    fabric_.host().ended(fabric_.host().self, flush.operation, KVF_LOST, why.c_str());
  return KVF_OK;
}

// ---- operations

int32_t kvf_endpoint::begin(Request::Kind kind, void* local, const kvf_memory* memory, uint64_t remote,
                            const kvf_key& key, size_t length, uint64_t operation, kvf_text why) {
  if (state_ != State::standing)
    return kvferry::plugin_kit::say(why, why_lost_.empty() ? fabric_.provider() + ": not connected" : why_lost_,
                                    KVF_LOST);
  if (spare_.empty()) spare_.emplace_back();
  Transfer& transfer = spare_.front();
  transfer.kind = kind;
  transfer.peer = peer_;
  transfer.local = local;
  transfer.length = length;
  transfer.remote = remote - key.base;
  transfer.key = key.key;
  transfer.operation = operation;
  transfer.put = kind == Request::Kind::write ? last_put_ + 1 : 0;
  if (memory == nullptr && fabric_.register_own(local, length, FI_READ | FI_WRITE, transfer.own, why) != KVF_OK)
    return KVF_FAILED;
  fid_mr* const registration = memory != nullptr ? memory->registration.get() : transfer.own.get();
  transfer.descriptor = registration != nullptr ? fi_mr_desc(registration) : nullptr;

  const ssize_t result = backlog_.empty() ? port_->post(transfer) : -FI_EAGAIN;
  if (result != 0 && result != -FI_EAGAIN) {
    transfer.own.close();
    const bool alone = result == -FI_EINVAL || result == -FI_ENOMEM || result == -FI_ENOSYS;
    return say(why, fabric_.provider(), result, alone ? KVF_FAILED : KVF_LOST);
  }
  transfers_.splice(transfers_.end(), spare_, spare_.begin());
  transfer.self = std::prev(transfers_.end());
  if (transfer.put != 0) puts_.insert(puts_.end(), last_put_ = transfer.put);
  if (result != 0) backlog_.push_back(&transfer);
  if (result != 0 || fabric_.polls()) fabric_.want_turns(*this);
  return KVF_PENDING;
}

// A provider that has nothing of ours in flight and takes nothing has lost the connection, and would make another: to
// whoever listens there now, or for ever.
void kvf_endpoint::drain_backlog() {
  while (!backlog_.empty()) {
    const bool idle = backlog_.size() == transfers_.size();
    const ssize_t result = port_->post(*backlog_.front());
    if (result == -FI_EAGAIN) {
      if (idle && std::exchange(stuck_, true)) lose(fabric_.provider() + ": the connection is gone");
      if (!idle) stuck_ = false;
      return;
    }
    stuck_ = false;
    Transfer& transfer = *backlog_.front();
    backlog_.pop_front();
    if (result != 0) {
      const std::string why = fabric_.provider() + ": " + fi_strerror(static_cast<int>(-result));
      tell(transfer, KVF_LOST, why);
      return lose(why);
    }
  }
}

int32_t kvf_endpoint::flush(uint64_t operation, kvf_text why) {
  if (state_ == State::lost) return kvferry::plugin_kit::say(why, why_lost_, KVF_LOST);
  if (state_ == State::standing && arrived(last_put_)) return KVF_OK;
  flushes_.push_back({operation, last_put_});
  return KVF_PENDING;
}

// What waits in the backlog is ours to take back. What the provider has it is asked to end.
int32_t kvf_endpoint::cancel(std::span<const uint64_t> operations) {
  const std::unordered_set<uint64_t> unwanted(operations.begin(), operations.end());
  std::vector<Transfer*> waiting;
  std::erase_if(backlog_, [&](Transfer* each) {
    if (unwanted.count(each->operation) == 0) return false;
    waiting.push_back(each);
    return true;
  });
  if (backlog_.empty()) stuck_ = false;
  for (Transfer* each : waiting) tell(*each, KVF_FAILED, "cancelled");
  if (waiting.size() < unwanted.size())
    for (Transfer& each : transfers_)
      if (unwanted.count(each.operation) > 0) port_->cancel(each);
  tell_flushes();
  return KVF_OK;
}

void kvf_endpoint::ended(Request& request, int32_t result, const std::string& why) {
  if (&request == &hello_.request) {
    if (result != KVF_OK && state_ == State::asking) lose(why);
  } else if (&request == &answer_.request) {
    result == KVF_OK ? on_answer() : lose(why);
  } else if (&request == &thanks_.request) {
    on_thanked(result, why);
  } else {
    tell(static_cast<Transfer&>(request), result, why);
    if (!backlog_.empty()) fabric_.want_turns(*this);
    tell_flushes();
  }
}

void kvf_endpoint::tell(Transfer& transfer, int32_t result, const std::string& why) {
  transfer.own.close();
  if (transfer.put != 0) puts_.erase(transfer.put);
  spare_.splice(spare_.begin(), transfers_, transfer.self);
  fabric_.host().ended(fabric_.host().self, transfer.operation, result, why.c_str());
}

void kvf_endpoint::tell_flushes() {
  while (state_ == State::standing && !flushes_.empty() && arrived(flushes_.front().last_put)) {
    fabric_.host().ended(fabric_.host().self, flushes_.front().operation, KVF_OK, "");
    flushes_.pop_front();
  }
}
