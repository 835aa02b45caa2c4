#include "engine/fabric/plugin/work.h"

namespace kvferry::plugin {

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
  if (all_ != nullptr) all_->ended_(std::move(self), result, why);
}

void PieceOperation::orphan() {
  for (const RegionPin& pin : work_->job->pins) pins_.push_back(pin.another());
  --work_->in_flight;
  all_ = nullptr;
}

void InFlight::orphan_all() {
  for (PieceOperation* operation : operations_) operation->orphan();
  operations_.clear();
  bytes_ = 0;
}

}  // namespace kvferry::plugin
