#include "sim/block_allocator.h"

#include <algorithm>

#include "common/check.h"
#include "common/random.h"

namespace kvferry::sim {

ChainHash chain_hash(ChainHash previous, std::span<const Token> tokens) {
  ChainHash hash = SeededRandom(previous).next();
  for (const Token token : tokens) hash = SeededRandom(hash ^ static_cast<uint64_t>(token)).next();
  return hash;
}

BlockAllocator::BlockAllocator(size_t blocks, size_t block_size, bool prefix_cache)
    : block_size_(block_size), prefix_cache_(prefix_cache), blocks_(blocks) {
  for (size_t id = blocks; id > 0; --id) free_.push_back(static_cast<BlockId>(id - 1));
}

const BlockId* BlockAllocator::find(ChainHash previous, std::span<const Token> tokens) const {
  const auto found = remembered_.find(chain_hash(previous, tokens));
  if (found == remembered_.end()) return nullptr;
  const Block& block = blocks_[found->second];
  // The tokens are compared too: a collision of hashes must not hand out the KV of another prompt.
  if (block.previous != previous || !std::ranges::equal(block.tokens, tokens)) return nullptr;
  return &found->second;
}

std::vector<BlockId> BlockAllocator::match(ChainHash salt, std::span<const Token> tokens) {
  std::vector<BlockId> matched;
  ChainHash previous = salt;
  for (size_t at = 0; at + block_size_ <= tokens.size(); at += block_size_) {
    const BlockId* id = find(previous, tokens.subspan(at, block_size_));
    if (id == nullptr) break;
    Block& block = blocks_[*id];
    if (block.references++ == 0) idle_.erase(block.idle);
    previous = block.hash;
    matched.push_back(*id);
  }
  return matched;
}

std::optional<std::vector<BlockId>> BlockAllocator::allocate(size_t count) {
  if (count > free_.size() + idle_.size()) return std::nullopt;
  std::vector<BlockId> taken;
  taken.reserve(count);
  while (taken.size() < count) taken.push_back(take_one());
  return taken;
}

BlockId BlockAllocator::take_one() {
  BlockId id = 0;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else {
    id = idle_.front();
    idle_.pop_front();
    forget(blocks_[id]);
  }
  blocks_[id].references = 1;
  return id;
}

void BlockAllocator::forget(Block& block) {
  remembered_.erase(block.hash);
  block.remembered = false;
  block.tokens.clear();
}

ChainHash BlockAllocator::remember(BlockId id, ChainHash previous, std::span<const Token> tokens) {
  KVF_CHECK(tokens.size() == block_size_);
  Block& block = blocks_[id];
  KVF_CHECK(block.references > 0);
  const ChainHash hash = chain_hash(previous, tokens);
  if (!prefix_cache_ || block.remembered) return hash;
  if (!remembered_.try_emplace(hash, id).second) return hash;
  block.remembered = true;
  block.previous = previous;
  block.hash = hash;
  block.tokens.assign(tokens.begin(), tokens.end());
  return hash;
}

void BlockAllocator::release(std::span<const BlockId> blocks) {
  for (size_t i = blocks.size(); i > 0; --i) {
    const BlockId id = blocks[i - 1];
    Block& block = blocks_[id];
    KVF_CHECK(block.references > 0);
    if (--block.references > 0) continue;
    if (block.remembered) {
      block.idle = idle_.insert(idle_.end(), id);
    } else {
      free_.push_back(id);
    }
  }
}

void BlockAllocator::forget_cached() {
  for (const BlockId id : idle_) {
    forget(blocks_[id]);
    free_.push_back(id);
  }
  idle_.clear();
}

BlockCounts BlockAllocator::counts() const {
  return {.total = blocks_.size(),
          .free = free_.size(),
          .cached = idle_.size(),
          .used = blocks_.size() - free_.size() - idle_.size()};
}

}  // namespace kvferry::sim
