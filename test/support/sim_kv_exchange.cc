#include "test/support/sim_kv_exchange.h"

#include <algorithm>

namespace kvferry::sim {
namespace {

// Where one byte of a head of the whole model lies on any rank that has the head.
std::byte* byte_at(Model& model, size_t rank, size_t layer, BlockId block, size_t model_head, size_t offset) {
  const KvCacheView& cache = model.kv_cache(rank);
  return cache.base + layer * cache.layer_stride + block * cache.block_stride +
         (model_head - cache.first_head) * cache.head_stride + offset;
}

bool has_head(const KvCacheView& cache, size_t head) {
  return head >= cache.first_head && head < cache.first_head + cache.heads;
}

void copy_block(Model& owner, BlockId from, Model& reader, BlockId to) {
  const KvCacheView& shape = owner.kv_cache(0);
  for (size_t rank = 0; rank < reader.tp(); ++rank) {
    for (size_t head = 0; head < shape.total_heads; ++head) {
      if (!has_head(reader.kv_cache(rank), head)) continue;
      size_t source = 0;
      while (!has_head(owner.kv_cache(source), head)) ++source;
      for (size_t layer = 0; layer < shape.layers; ++layer) {
        for (size_t i = 0; i < shape.page_bytes(); ++i) {
          *byte_at(reader, rank, layer, to, head, i) = *byte_at(owner, source, layer, from, head, i);
        }
      }
    }
  }
}

}  // namespace

class KvExchange::Endpoint final : public KvTransfer {
 public:
  Endpoint(KvExchange& exchange, Model& model) : exchange_(exchange), model_(model) {}

  void announce(const std::string& transfer_id) override { exchange_.announced_.try_emplace(transfer_id, true); }

  Status publish(KvPublication publication, std::function<void()> released) override {
    bool& open = exchange_.announced_[publication.transfer_id];
    if (!open) return Error{ErrorCode::already_exists, "the transfer was withdrawn or released", "", "", "exchange"};
    open = false;
    const std::string id = publication.transfer_id;
    exchange_.published_[id] = {&model_, std::move(publication), std::move(released)};
    return {};
  }

  void withdraw(const std::string& transfer_id) override { exchange_.announced_[transfer_id] = false; }

  void fetch(uint64_t fetch_id, KvFetch fetch, std::function<void(Status)> done) override {
    exchange_.fetches_.push_back({&model_, fetch_id, std::move(fetch), std::move(done)});
  }

  void cancel(uint64_t fetch_id) override {
    for (Fetch& fetch : exchange_.fetches_) {
      if (fetch.reader == &model_ && fetch.id == fetch_id) fetch.cancelled = true;
    }
  }

  void release(const TransferRef& from) override {
    exchange_.announced_[from.transfer_id] = false;
    exchange_.release(from.transfer_id);
  }

 private:
  KvExchange& exchange_;
  Model& model_;
};

std::unique_ptr<KvTransfer> KvExchange::connect(Model& model) {
  return std::make_unique<Endpoint>(*this, model);
}

void KvExchange::release(const std::string& transfer_id) {
  const auto found = published_.find(transfer_id);
  if (found == published_.end()) return;
  const auto released = std::move(found->second.released);
  published_.erase(found);
  released();
}

void KvExchange::expire_all() {
  while (!published_.empty()) release(published_.begin()->first);
}

void KvExchange::deliver() {
  std::deque<Fetch> waiting;
  std::deque<Fetch> now;
  for (Fetch& fetch : fetches_) {
    const auto announced = announced_.find(fetch.fetch.from.transfer_id);
    const bool may_come = announced != announced_.end() && announced->second;
    (may_come && !fetch.cancelled ? waiting : now).push_back(std::move(fetch));
  }
  fetches_ = std::move(waiting);
  for (Fetch& fetch : now) {
    Status status = serve(fetch);
    if (status.ok()) release(fetch.fetch.from.transfer_id);
    fetch.done(std::move(status));
  }
}

Status KvExchange::serve(const Fetch& fetch) {
  if (fetch.cancelled) return Error{ErrorCode::cancelled, "the fetch was cancelled", "", "", "exchange"};
  const auto found = published_.find(fetch.fetch.from.transfer_id);
  if (found == published_.end()) return Error{ErrorCode::gone, "no such parcel", "", "", "exchange"};
  if (fail_fetches_) return Error{ErrorCode::peer_lost, "the network is cut", "", "", "exchange"};
  const KvPublication& publication = found->second.publication;
  if (publication.prompt != fetch.fetch.prompt || publication.cache_salt != fetch.fetch.cache_salt ||
      publication.tokens_covered < fetch.fetch.end_token) {
    return Error{ErrorCode::conflict, "the parcel is for another prompt", "", "", "exchange"};
  }
  const size_t first = fetch.fetch.first_token / found->second.owner->config().block_size;
  for (size_t i = 0; i < fetch.fetch.blocks.size(); ++i) {
    if (damage_block_ && *damage_block_ == i) continue;
    copy_block(*found->second.owner, publication.blocks[first + i], *fetch.reader, fetch.fetch.blocks[i]);
  }
  tokens_moved_ += fetch.fetch.end_token - fetch.fetch.first_token;
  return {};
}

}  // namespace kvferry::sim
