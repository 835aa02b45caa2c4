#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/parcel/layout.h"
#include "test/simulator/memory_book.h"

namespace kvferry::simulator {

// How the caches of one world look; owners and readers may differ in what the protocol lets differ.
struct CacheShape {
  uint32_t layers = 2;
  uint32_t heads = 2;
  uint32_t head_size = 8;  // elements of 16 bits
  uint32_t blocks = 24;
  uint32_t block_tokens = 4;
  uint32_t tp_size = 1;
  PageShape page = PageShape::head_major;
  KvOrder order = KvOrder::in_block;
  MemoryKind kind = MemoryKind::host;
};

// One rank's paged KV cache in a machine's memory. What a row holds is told by the tag of its request and its place in
// the model, so that a byte from any other request, place or time is seen.
class Cache {
 public:
  // REQUIRES: running. Registers the memory.
  Cache(World& world, SimEngine& engine, const CacheShape& shape, uint32_t tp_rank);

  const KvLayout& layout() const { return *layout_; }
  const std::shared_ptr<const KvLayout>& shared_layout() const { return layout_; }
  uint32_t block_tokens() const { return shape_.block_tokens; }

  // Blocks that nobody uses; empty when there are not enough.
  std::vector<uint32_t> take(size_t count);
  void give_back(const std::vector<uint32_t>& blocks);
  size_t free_blocks() const { return free_.size(); }

  void fill(const std::vector<uint32_t>& blocks, uint64_t tag, uint32_t tokens);
  // The first row in [first, tokens) that is not of `tag`, in words; empty: all are.
  std::string differs(const std::vector<uint32_t>& blocks, uint64_t tag, uint32_t first, uint32_t tokens) const;
  void poison(const std::vector<uint32_t>& blocks);
  // I4: these blocks stay as they are until `until`; then `released` is called once.
  void watch(MemoryBook& book, const std::vector<uint32_t>& blocks, TimePoint until, const std::string& what,
             const Task& released);

 private:
  using EachRow = std::function<bool(std::byte* row, size_t bytes, uint64_t place, uint32_t token)>;
  bool for_each_row(const std::vector<uint32_t>& blocks, uint32_t first, uint32_t tokens, const EachRow& each) const;

  const SimEngine& engine_;
  const CacheShape shape_;
  std::byte* const base_;
  size_t layer_bytes_ = 0;
  std::shared_ptr<const KvLayout> layout_;
  std::vector<uint32_t> free_;
};

}  // namespace kvferry::simulator
