#include "engine/fabric/ofi/door.h"

#include <algorithm>
#include <utility>

#include "engine/fabric/ofi/fabric.h"

namespace kvferry::ofi {
namespace {

constexpr auto kAnswerPatience = std::chrono::seconds(5);
constexpr int kAdmittedAtOnce = 4;  // I7: an endpoint takes some milliseconds to make

}  // namespace

int32_t Mailbox::prepare(kvf_fabric& fabric, Request::Kind kind, kvf_text why) {
  request.kind = kind;
  request.local = &letter;
  request.length = sizeof letter;
  if (fabric.register_own(&letter, sizeof letter, FI_SEND | FI_RECV, registration, why) != KVF_OK) return KVF_FAILED;
  request.descriptor = registration ? fi_mr_desc(registration.get()) : nullptr;
  return KVF_OK;
}

// ---- one client's end

int32_t Door::Guest::open(const Letter& hello, Letter::Kind kind, kvf_text why) {
  port_ = Port::open(fabric_, *this, why);
  if (!port_) return KVF_FAILED;
  answer_.request.peer = port_->add(hello.writer());
  if (answer_.request.peer == FI_ADDR_UNSPEC ||
      !Letter::make(answer_.letter, kind, hello.client, hello.number, port_->name()))
    return say(why, fabric_.provider() + ": not a peer's name", -FI_EINVAL);
  until_ = std::chrono::steady_clock::now() + kAnswerPatience;
  if (thanks_.prepare(fabric_, Request::Kind::receive, why) != KVF_OK) return KVF_FAILED;
  if (const ssize_t error = port_->post(thanks_.request); error != 0) return say(why, "cannot receive", error);
  return answer_.prepare(fabric_, Request::Kind::send, why);
}

bool Door::Guest::answer() {
  if (!posted_ && !lost_) {
    const ssize_t result = port_->post(answer_.request);
    posted_ = result == 0;
    lost_ = result != 0 && result != -FI_EAGAIN;
  }
  lost_ |= !over() && std::chrono::steady_clock::now() > until_;
  return over();
}

void Door::Guest::ended(Request& request, int32_t result, const std::string&) {
  if (&request == &thanks_.request) {
    // One letter is owed here. Others would be kept by the provider, without bound.
    if (std::exchange(thanked_, true) || result != KVF_OK || port_->post(thanks_.request) != 0) lose();
  } else if (result == KVF_OK) {
    answered_ = true;
  } else {
    lose();
  }
}

// In a later turn the door closes it.
void Door::Guest::lose() {
  lost_ = true;
  fabric_.want_turns(door_);
}

// ---- the door

std::unique_ptr<Door> Door::open(kvf_fabric& fabric, kvf_text why) {
  std::unique_ptr<Door> made(new Door(fabric));
  return made->start(why) == KVF_OK ? std::move(made) : nullptr;
}

Door::~Door() {
  guests_.clear();
  refused_.clear();
  port_.reset();
  fabric_.want_none(*this);
}

int32_t Door::start(kvf_text why) {
  port_ = Port::open(fabric_, *this, why);
  if (!port_) return KVF_FAILED;
  if (!port_->may_have_peers_here())  // it does not know who dials it
    return say(why, fabric_.provider() + Graves::kFull, -FI_ENOSPC);
  for (Mailbox& box : boxes_) {
    if (box.prepare(fabric_, Request::Kind::receive, why) != KVF_OK) return KVF_FAILED;
    idle_.push_back(&box);
  }
  fabric_.want_turns(*this);
  return KVF_OK;
}

void Door::ended(Request& request, int32_t result, const std::string&) {
  const auto box =
      std::find_if(boxes_.begin(), boxes_.end(), [&](const Mailbox& each) { return &each.request == &request; });
  if (result == KVF_OK && box->letter.is_sound() && box->letter.kind == Letter::Kind::hello)
    heard_.push_back(box->letter);
  idle_.push_back(&*box);
  fabric_.want_turns(*this);
}

bool Door::tend() {
  // Letters that cost nothing go at once: the provider keeps what nobody receives, without bound.
  for (int made = 0; made < kAdmittedAtOnce && !heard_.empty(); heard_.pop_front())
    made += admit(heard_.front()) ? 1 : 0;
  while (heard_.empty() && !idle_.empty()) {
    idle_.back()->letter = {};  // of which a shorter one would leave the rest
    if (port_->post(idle_.back()->request) != 0) break;
    idle_.pop_back();
  }
  bool waiting = !idle_.empty() || !heard_.empty();
  std::vector<uint64_t> lost;
  for (const auto& [client, guest] : guests_) {
    waiting |= !guest->answer();
    if (guest->lost()) lost.push_back(client);
  }
  for (const uint64_t client : lost) fence(client);
  std::erase_if(refused_, [&](const auto& guest) {
    const bool over = guest->answer();
    waiting |= !over;
    return over;
  });
  return waiting;
}

// One connection a client: a new one stands for the end of the old, and of all that was on its way there. Whether it
// took time.
bool Door::admit(const Letter& hello) {
  const bool room = guests_.size() < kMostGuests || guests_.count(hello.client) > 0;
  const bool admitted = room && fabric_.host().admit(fabric_.host().self, hello.client) != 0;
  if (!admitted && refused_.size() >= kMostRefused) return false;
  if (admitted && !fence(hello.client)) return true;
  auto guest = std::make_unique<Guest>(fabric_, *this);
  if (guest->open(hello, admitted ? Letter::Kind::welcome : Letter::Kind::refusal, {nullptr, 0}) != KVF_OK) return true;
  if (admitted)
    guests_[hello.client] = std::move(guest);
  else
    refused_.push_back(std::move(guest));
  return true;
}

bool Door::knows(uint64_t number) const {
  return std::any_of(guests_.begin(), guests_.end(), [&](const auto& each) { return each.second->number() == number; });
}

// I4: a connection that libfabric does not let go of stays where libfabric may still find it, and what came by it is
// never sure to have ended.
bool Door::fence(uint64_t client) {
  auto entry = guests_.extract(client);
  if (!entry.empty() && !entry.mapped()->close()) {
    static_cast<void>(entry.mapped().release());
    unsure_.insert(client);
  }
  return unsure_.count(client) == 0;
}

}  // namespace kvferry::ofi
