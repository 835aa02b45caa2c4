#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/fd.h"

namespace kvferry {

// How an owner on the same host fences readers and writers of its memory without asking them (I1, I4).
//
//   words  one memfd per owner, one 64-bit generation word per region or parcel. Peers map it read-only.
//          A word holds the generation that is in force; 0: none. It only ever moves away from a value, never back.
//   slots  one memfd per session, made by the peer, one cache line per copy in flight. A writer stores the word's index
//          into a slot, then loads the word (both seq_cst), and copies only if the generation is still the one that it
//          was given. The owner stores the word, then reads the slots: whoever it does not see there has not begun, and
//          will see the new word.
//   Readers take no slot: they load the word after the copy, behind a fence, and throw away what they read if it moved.

using WordIndex = uint32_t;
constexpr WordIndex kNoWord = UINT32_MAX;

// A shared mapping of a memfd; unmapped with the object.
class SharedMapping {
 public:
  static Result<SharedMapping> map(int fd, size_t length, bool writable);
  SharedMapping(SharedMapping&& other) noexcept;
  SharedMapping& operator=(SharedMapping&&) = delete;
  ~SharedMapping();

  std::atomic<uint64_t>* words() const { return static_cast<std::atomic<uint64_t>*>(base_); }
  size_t length() const { return length_; }

 private:
  SharedMapping(void* base, size_t length) : base_(base), length_(length) {}
  void* base_;
  size_t length_;
};

// The owner's words. Its memfd has the full size from the start and costs memory only for pages that were touched.
class GateWords {
 public:
  static constexpr size_t kWords = size_t{1} << 20;  // 8 MiB of address space; regions, parcels and sessions together
  static constexpr size_t kBytes = kWords * sizeof(uint64_t);

  static Result<std::unique_ptr<GateWords>> create();

  // A free word holding `generation` (not 0), or an Error at the limit. Thread-safe.
  Result<WordIndex> open(uint64_t generation);
  // Ends the generation in force: seq_cst, so that a scan of the slots afterwards sees every writer that saw the old
  // one.
  void close(WordIndex index);
  // Gives a closed word back for reuse; its next generation must be one that it never held.
  void free(WordIndex index);

  uint64_t load(WordIndex index) const { return mapping_.words()[index].load(std::memory_order_seq_cst); }
  int fd() const { return fd_.get(); }

 private:
  GateWords(UniqueFd fd, SharedMapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  const UniqueFd fd_;
  const SharedMapping mapping_;
  std::mutex mutex_;
  std::vector<WordIndex> free_;  // GUARDED_BY(mutex_)
  WordIndex used_ = 0;           // GUARDED_BY(mutex_)
};

// Both ends of one session's slots.
class GateSlots {
 public:
  static constexpr size_t kWriters = 64;    // copies at once
  static constexpr size_t kMappings = 448;  // regions of the owner that the peer has mapped
  static constexpr size_t kSlots = kWriters + kMappings;
  static constexpr size_t kStride = 8;  // words: one cache line a slot
  static constexpr size_t kBytes = kSlots * kStride * sizeof(uint64_t);

  static Result<UniqueFd> create_fd();
  // The peer's end and the owner's: the same bytes.
  static Result<GateSlots> map(int fd);

  // Writer: marks a free slot with `word`; -1 when all are taken. Thread-safe within the process.
  int mark(WordIndex word) { return mark(word, 0, kWriters); }
  // The same for as long as the region behind `word` is mapped.
  int mark_mapping(WordIndex word) { return mark(word, kWriters, kSlots); }
  void clear(int slot);

  // Owner: whether some slot names `word`.
  bool marked(WordIndex word) const;
  bool any_marked() const;
  // Owner: after the writer's process has died.
  void clear_all();

 private:
  int mark(WordIndex word, size_t first, size_t end);
  explicit GateSlots(SharedMapping mapping) : mapping_(std::move(mapping)) {}
  std::atomic<uint64_t>& slot(size_t index) const { return mapping_.words()[index * kStride]; }
  SharedMapping mapping_;
};

}  // namespace kvferry
