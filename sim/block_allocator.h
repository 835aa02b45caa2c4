#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "sim/model_config.h"

namespace kvferry::sim {

// What a full block holds, as a hash of its tokens and of all blocks before it. The first block's predecessor is the
// salt.
using ChainHash = uint64_t;

ChainHash chain_hash(ChainHash previous, std::span<const Token> tokens);

struct BlockCounts {
  size_t total = 0;
  size_t free = 0;    // hold nothing of use
  size_t cached = 0;  // referenced by nobody, but a later prompt may find its prefix there
  size_t used = 0;    // referenced
};

// Gives out the blocks of a paged KV cache, counts references, and remembers full blocks by content until they are
// needed for something else (least recently used first). Knows nothing of memory. Not thread-safe.
class BlockAllocator {
 public:
  BlockAllocator(size_t blocks, size_t block_size, bool prefix_cache);

  // The longest run of remembered blocks that hold the beginning of `tokens`, each referenced once for the caller.
  std::vector<BlockId> match(ChainHash salt, std::span<const Token> tokens);

  // `count` blocks with one reference each, or nothing at all. Forgets cached blocks as needed.
  std::optional<std::vector<BlockId>> allocate(size_t count);

  // Remembers that a referenced block holds these tokens (a whole block) behind `previous`; returns the hash for its
  // successor. Where another block holds the same, that one stays the remembered one.
  ChainHash remember(BlockId block, ChainHash previous, std::span<const Token> tokens);

  // Takes one reference off each. The last blocks of the list will be forgotten first.
  void release(std::span<const BlockId> blocks);

  // Forgets the content of everything that is not referenced.
  void forget_cached();

  BlockCounts counts() const;
  size_t block_size() const { return block_size_; }

 private:
  struct Block {
    size_t references = 0;
    bool remembered = false;
    ChainHash previous = 0;
    ChainHash hash = 0;
    std::vector<Token> tokens;
    std::list<BlockId>::iterator idle;  // its place in idle_, when remembered and not referenced
  };
  BlockId take_one();
  void forget(Block& block);
  const BlockId* find(ChainHash previous, std::span<const Token> tokens) const;

  const size_t block_size_;
  const bool prefix_cache_;
  std::vector<Block> blocks_;
  std::vector<BlockId> free_;
  std::list<BlockId> idle_;  // cached blocks, the next to be forgotten in front
  std::unordered_map<ChainHash, BlockId> remembered_;
};

}  // namespace kvferry::sim
