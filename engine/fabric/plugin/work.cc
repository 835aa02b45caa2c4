#include "engine/fabric/plugin/work.h"

namespace kvferry::plugin {

Status settle_writes(const Job& job, std::span<const RegionPin> pins) {
  FabricMemoryOps* const device = job.local_ops != nullptr ? job.local_ops->for_fabrics() : nullptr;
  if (device == nullptr || job.operation == Operation::write) return {};
  std::vector<const void*> places;
  for (const RegionPin& pin : pins) places.push_back(pin->at(0));
  return device->settle_writes(places);
}

std::vector<size_t> to_read_back(const Job& job) {
  std::vector<size_t> pairs;
  std::unordered_set<RegionId> regions;
  for (size_t i = job.pairs.size(); i-- > 0;) {
    const bool wanted = pairs.empty() || job.remote[i]->kind != MemoryKind::host;
    if (wanted && regions.insert(job.remote[i]->id).second) pairs.push_back(i);
  }
  return pairs;
}

PieceOperation::PieceOperation(InFlight& all, WorkPtr work, Piece piece)
    : all_(&all), work_(std::move(work)), piece_(piece) {
  all_->operations_.insert(this);
  all_->bytes_ += piece_.length;
  ++work_->in_flight;
}

PieceOperation::~PieceOperation() {
  if (all_ == nullptr) return;
  all_->operations_.erase(this);
  all_->bytes_ -= piece_.length;
  --work_->in_flight;
}

void PieceOperation::ended(int32_t result, const std::string& why) {
  std::unique_ptr<PieceOperation> self(this);
  if (all_ != nullptr) return all_->ended_(std::move(self), result, why);
  static_cast<void>(settle_writes(*work_->job, pins_));
}

void PieceOperation::orphan() {
  work_->job->loose = true;
  for (const RegionPin& pin : work_->job->pins) pins_.push_back(pin.another());
  --work_->in_flight;
  all_ = nullptr;
}

std::vector<uint64_t> InFlight::tokens_of(const WorkPtr& work) const {
  std::vector<uint64_t> tokens;
  for (PieceOperation* operation : operations_)
    if (operation->work() == work) tokens.push_back(operation->token());
  return tokens;
}

void InFlight::orphan_all() {
  for (PieceOperation* operation : operations_) operation->orphan();
  operations_.clear();
  bytes_ = 0;
}

}  // namespace kvferry::plugin
