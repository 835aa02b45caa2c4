#include "engine/fabric/local/attach.h"

#include <algorithm>
#include <thread>

namespace kvferry::local {
namespace {

// A slot that names no single word: the writer is in several regions at once.
constexpr WordIndex kManyWords = kNoWord - 1;

Error not_who_it_says() {
  return Error{ErrorCode::permission_denied, "the process behind this pid is not the one at the other end"};
}

}  // namespace

// ---- the owner's side

Result<AttachReply> Owner::attach(const Guest& guest, const HostIdentity& peer, uint64_t expected_proof,
                                  const AttachRequest& request) {
  if (attached_.contains(&guest)) return Error{ErrorCode::protocol, "attached twice"};
  KVF_ASSIGN_OR_RETURN(Process process, Process::open(peer.pid));
  KVF_ASSIGN_OR_RETURN(const uint64_t proof, process.read_word(request.proof_address));
  if (proof != expected_proof) return not_who_it_says();
  KVF_ASSIGN_OR_RETURN(const UniqueFd slots_fd, process.open_fd(request.slots_fd, true));
  KVF_ASSIGN_OR_RETURN(GateSlots slots, GateSlots::map(slots_fd.get()));
  auto attached =
      std::make_unique<Attached>(Attached{std::move(process), std::move(slots), request.challenge, kNoWord});
  const uint64_t generation = next_generation_++;
  KVF_ASSIGN_OR_RETURN(attached->session_word, words_.open(generation));
  const AttachReply reply{reinterpret_cast<uint64_t>(&attached->proof), static_cast<uint32_t>(words_.fd()),
                          attached->session_word, generation};
  attached_.emplace(&guest, std::move(attached));
  return reply;
}

void Owner::detach(const Guest& guest) {
  auto entry = attached_.extract(&guest);
  if (entry.empty()) return;
  words_.close(entry.mapped()->session_word);
  leaving_.push_back(std::move(entry.mapped()));
  forget_finished();
}

void Owner::forget_finished() {
  std::erase_if(leaving_, [this](const std::unique_ptr<Attached>& attached) {
    if (attached->slots.any_marked() && attached->process.alive()) return false;
    words_.free(attached->session_word);
    return true;
  });
}

bool Owner::has_writers(WordIndex word) {
  const auto writes = [&](Attached& attached) {
    if (!attached.slots.marked(word) && !attached.slots.marked(kManyWords)) return false;
    if (attached.process.alive()) return true;
    attached.slots.clear_all();  // a dead process writes no more, whoever holds its sockets
    return false;
  };
  bool any = false;
  for (const auto& [guest, attached] : attached_) any |= writes(*attached);
  for (const auto& attached : leaving_) any |= writes(*attached);
  forget_finished();
  return any;
}

// ---- the initiator's side

Result<std::shared_ptr<Link>> Link::prepare(const HostIdentity& owner, uint64_t proof, uint64_t challenge) {
  KVF_ASSIGN_OR_RETURN(Process process, Process::open(owner.pid));
  KVF_ASSIGN_OR_RETURN(UniqueFd slots_fd, GateSlots::create_fd());
  KVF_ASSIGN_OR_RETURN(GateSlots slots, GateSlots::map(slots_fd.get()));
  return std::shared_ptr<Link>(new Link(std::move(process), std::move(slots_fd), std::move(slots), proof, challenge));
}

AttachRequest Link::request() const {
  return {reinterpret_cast<uint64_t>(&proof_), challenge_, static_cast<uint32_t>(slots_fd_.get())};
}

Status Link::complete(const AttachReply& reply) {
  KVF_ASSIGN_OR_RETURN(const uint64_t proof, process_.read_word(reply.proof_address));
  if (proof != challenge_) return not_who_it_says();
  KVF_ASSIGN_OR_RETURN(const UniqueFd words_fd, process_.open_fd(reply.words_fd, false));
  KVF_ASSIGN_OR_RETURN(SharedMapping words, SharedMapping::map(words_fd.get(), GateWords::kBytes, false));
  if (reply.session_word >= GateWords::kWords) return Error{ErrorCode::protocol, "session word out of range"};
  words_ = std::make_unique<SharedMapping>(std::move(words));
  session_word_ = reply.session_word;
  session_generation_ = reply.session_generation;
  return {};
}

bool Link::in_force(WordIndex word, uint64_t generation) const {
  if (word >= GateWords::kWords || !process_.alive()) return false;
  std::atomic_thread_fence(std::memory_order_acquire);
  return words_->words()[word].load(std::memory_order_seq_cst) == generation;
}

Status Link::check_generations(std::span<const RegionInfo* const> regions) const {
  const RegionInfo* last = nullptr;
  for (const RegionInfo* region : regions) {
    if (region == last) continue;
    last = region;
    if (words_->words()[region->word].load(std::memory_order_seq_cst) != region->id)
      return Error{ErrorCode::not_found, "region " + std::to_string(region->id) + " was unregistered"};
  }
  return {};
}

Status Link::read(std::span<const iovec> ours, std::span<const iovec> theirs,
                  std::span<const RegionInfo* const> regions) {
  KVF_RETURN_IF_ERROR(process_.read(ours, theirs));
  // A dead owner moves no generation, and its pid may be another's by now.
  if (!process_.alive()) return Error{ErrorCode::peer_lost, "the owner's process has ended"};
  std::atomic_thread_fence(std::memory_order_acquire);  // I1, DESIGN.md: the words are read after the bytes
  return check_generations(regions);
}

Status Link::write(std::span<const iovec> ours, std::span<const iovec> theirs,
                   std::span<const RegionInfo* const> regions) {
  const bool one_region =
      std::all_of(regions.begin(), regions.end(), [&](const RegionInfo* region) { return region == regions.front(); });
  int slot = -1;
  // 64 copies at once over one session are already under way: this one waits its turn.
  while ((slot = slots_.mark(one_region ? regions.front()->word : kManyWords)) < 0) std::this_thread::yield();
  Status status = check_generations(regions);
  if (status.ok() && words_->words()[session_word_].load(std::memory_order_seq_cst) != session_generation_)
    status = Error{ErrorCode::peer_lost, "the owner has ended this session"};
  if (status.ok() && !process_.alive()) status = Error{ErrorCode::peer_lost, "the owner's process has ended"};
  if (status.ok()) status = process_.write(ours, theirs);
  slots_.clear(slot);
  return status;
}

Status Link::copy(Operation operation, std::span<const Pair> pairs, std::span<const RegionInfo* const> regions) {
  if (closed()) return Error{ErrorCode::peer_lost, "the session has ended"};
  constexpr size_t kBatch = 512;
  iovec ours[kBatch];
  iovec theirs[kBatch];
  for (size_t first = 0; first < pairs.size(); first += kBatch) {
    const size_t count = std::min(kBatch, pairs.size() - first);
    for (size_t i = 0; i < count; ++i) {
      const Pair& pair = pairs[first + i];
      ours[i] = {pair.local, pair.length};
      theirs[i] = {reinterpret_cast<void*>(regions[first + i]->base + pair.offset), pair.length};
    }
    const std::span<const RegionInfo* const> touched = regions.subspan(first, count);
    KVF_RETURN_IF_ERROR(operation == Operation::read ? read({ours, count}, {theirs, count}, touched)
                                                     : write({ours, count}, {theirs, count}, touched));
  }
  return {};
}

Status Link::copy_mapped(SharedMemoryOps& sharing, Operation operation, std::span<const Pair> pairs,
                         std::span<const RegionInfo* const> regions) {
  if (closed()) return Error{ErrorCode::peer_lost, "the session has ended"};
  // Held until the copy has landed; while it is, the owner does not take its memory back.
  std::vector<std::shared_ptr<const Imports::Import>> imports;
  std::vector<DirectCopy> copies;
  copies.reserve(pairs.size());
  const RegionInfo* last = nullptr;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (regions[i] != last) {
      KVF_ASSIGN_OR_RETURN(auto import, imports_.use(sharing, *regions[i]));
      imports.push_back(std::move(import));
      last = regions[i];
    }
    std::byte* theirs = imports.back()->base.get() + pairs[i].offset;
    const bool read = operation == Operation::read;
    copies.push_back({read ? pairs[i].local : theirs, read ? theirs : pairs[i].local, pairs[i].length});
  }
  if (operation == Operation::write) {
    KVF_RETURN_IF_ERROR(check_generations(regions));
    if (words_->words()[session_word_].load(std::memory_order_seq_cst) != session_generation_)
      return Error{ErrorCode::peer_lost, "the owner has ended this session"};
  }
  KVF_RETURN_IF_ERROR(sharing.copy(copies));
  if (!process_.alive()) return Error{ErrorCode::peer_lost, "the owner's process has ended"};
  if (operation == Operation::write) return {};
  std::atomic_thread_fence(std::memory_order_acquire);  // I1, DESIGN.md: the words are read after the bytes
  return check_generations(regions);
}

}  // namespace kvferry::local
