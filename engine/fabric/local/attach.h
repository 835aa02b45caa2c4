#pragma once

#include <unistd.h>

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "engine/fabric/fabric.h"
#include "engine/fabric/local/host.h"
#include "engine/fabric/local/imports.h"
#include "engine/fabric/local/process.h"
#include "engine/memory/gate.h"

namespace kvferry::local {

// The two ends of attaching (proto LocalAttach, LocalAttached): afterwards the initiator reaches the owner's memory,
// and the owner can fence it without asking (engine/memory/gate.h).

struct AttachRequest {
  uint64_t proof_address = 0;
  uint64_t challenge = 0;
  uint32_t slots_fd = 0;
};

struct AttachReply {
  uint64_t proof_address = 0;
  uint32_t words_fd = 0;
  WordIndex session_word = kNoWord;
  uint64_t session_generation = 0;
};

// The owner's side. On loop only.
class Owner {
 public:
  explicit Owner(GateWords& words) : words_(words) {}

  // `expected_proof`: what Welcome.local_challenge asked for.
  Result<AttachReply> attach(const Guest& guest, const HostIdentity& peer, uint64_t expected_proof,
                             const AttachRequest& request);
  // The session has ended: its writers are fenced. Their slots are watched until they are empty or their process dead.
  void detach(const Guest& guest);

  // I4: whether some writer may still be in the region behind `word`. REQUIRES: the word is closed.
  bool has_writers(WordIndex word);

 private:
  struct Attached {
    Process process;
    GateSlots slots;
    uint64_t proof = 0;  // the peer's challenge, where it can read it
    WordIndex session_word = kNoWord;
  };
  void forget_finished();

  GateWords& words_;
  uint64_t next_generation_ = uint64_t{1} << 63;  // apart from region ids
  std::map<const Guest*, std::unique_ptr<Attached>> attached_;
  std::list<std::unique_ptr<Attached>> leaving_;
};

// The initiator's end of one attached session. Thread-safe: copies run in callers' and copy threads.
class Link {
 public:
  // Before the owner has answered: makes the slots and holds the proof.
  static Result<std::shared_ptr<Link>> prepare(const HostIdentity& owner, uint64_t proof, uint64_t challenge);
  AttachRequest request() const;
  // Verifies the owner and maps its words.
  Status complete(const AttachReply& reply);

  // Copies spans that lie in regions of the owner; `pairs` and `regions` run in step. I1, I4: fails `stale` when a
  // region's generation moved before the copy ended; what was copied is then undefined.
  Status copy(Operation operation, std::span<const Pair> pairs, std::span<const RegionInfo* const> regions);
  // The same between memory of a device's kind on both sides, by mapping the owner's.
  Status copy_mapped(SharedMemoryOps& sharing, Operation operation, std::span<const Pair> pairs,
                     std::span<const RegionInfo* const> regions);
  // The owner's regions that are mapped here.
  Imports& imports() { return imports_; }

  // I1: whether the owner's word still holds `generation`, behind everything that was copied before.
  bool in_force(WordIndex word, uint64_t generation) const;

  // The session is gone: later copies fail, those in flight end.
  void close() {
    closed_.store(true, std::memory_order_seq_cst);
    imports_.close();
  }
  bool closed() const { return closed_.load(std::memory_order_relaxed); }

 private:
  Link(Process process, UniqueFd slots_fd, GateSlots slots, uint64_t proof, uint64_t challenge)
      : process_(std::move(process)),
        slots_fd_(std::move(slots_fd)),
        slots_(std::move(slots)),
        proof_(proof),
        challenge_(challenge),
        imports_(slots_, process_.pid() == static_cast<uint32_t>(::getpid()),
                 // The session's word, too: the slots of one that has ended are not looked at any more.
                 [this](const RegionInfo& region) {
                   return in_force(session_word_, session_generation_) && in_force(region.word, region.id);
                 }) {}
  Status read(std::span<const iovec> ours, std::span<const iovec> theirs, std::span<const RegionInfo* const> regions);
  Status write(std::span<const iovec> ours, std::span<const iovec> theirs, std::span<const RegionInfo* const> regions);
  Status check_generations(std::span<const RegionInfo* const> regions) const;

  const Process process_;
  const UniqueFd slots_fd_;
  GateSlots slots_;
  const uint64_t proof_;
  const uint64_t challenge_;
  std::unique_ptr<SharedMapping> words_;
  WordIndex session_word_ = kNoWord;
  uint64_t session_generation_ = 0;
  std::atomic<bool> closed_{false};
  Imports imports_;
};

}  // namespace kvferry::local
