#include "engine/fabric/local/copier.h"

namespace kvferry::local {
namespace {

// What one thread copies before it looks whether it should stop; small enough for an even split over a few threads.
constexpr uint64_t kSliceBytes = uint64_t{1} << 20;
constexpr size_t kSlicePairs = 512;

// Between memory of a device here and there; parcels' jobs from host to host name no kind.
bool is_mapped(const Job& job) {
  return job.local_ops != nullptr && !job.local_ops->host_addressable();
}

}  // namespace

Copy::Copy(std::shared_ptr<Job> job, std::shared_ptr<Link> link, const Clock& clock, Done done)
    : job_(std::move(job)), link_(std::move(link)), clock_(clock), done_(std::move(done)) {
  Chunker chunker(job_->pairs, kSliceBytes, kSlicePairs);
  while (!chunker.done()) slices_.push_back(chunker.take());
}

Status Copy::copy_slice(const Chunk& slice) {
  if (job_->deadline != kNever && clock_.now() >= job_->deadline)
    return Error{ErrorCode::deadline_exceeded, "not copied by the deadline"};
  for (const RegionPin& pin : job_->pins)
    if (pin->closing.load(std::memory_order_relaxed))
      return Error{ErrorCode::cancelled, "its local region was unregistered"};
  std::vector<Pair> pairs;
  pairs.reserve(slice.count);
  for_each_pair(job_->pairs, slice, [&](const Pair& pair) { pairs.push_back(pair); });
  const std::span<const RegionInfo* const> regions = std::span(job_->remote).subspan(slice.first, slice.count);
  if (is_mapped(*job_))
    KVF_RETURN_IF_ERROR(link_->copy_mapped(*job_->local_ops->sharing(), job_->operation, pairs, regions));
  else
    KVF_RETURN_IF_ERROR(link_->copy(job_->operation, pairs, regions));
  job_->bytes_done.fetch_add(slice.bytes, std::memory_order_relaxed);
  job_->spans_done.fetch_add(slice.ended, std::memory_order_relaxed);
  return {};
}

void Copy::record(Status status) {
  stop_.store(true, std::memory_order_seq_cst);
  const std::lock_guard lock(mutex_);
  if (status_.ok()) status_ = std::move(status);
}

void Copy::help() {
  active_.fetch_add(1, std::memory_order_seq_cst);
  while (!stop_.load(std::memory_order_seq_cst)) {
    const size_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= slices_.size()) break;
    if (Status status = copy_slice(slices_[index]); !status.ok()) record(std::move(status));
  }
  // The last to leave ends the copy: every slice was taken by somebody who has left.
  if (active_.fetch_sub(1, std::memory_order_seq_cst) == 1 && !ended_.exchange(true)) {
    Status status;
    {
      const std::lock_guard lock(mutex_);
      status = std::move(status_);
    }
    done_(std::move(status));
  }
}

bool Copy::cancel() {
  const bool first = !ended_.exchange(true);
  stop_.store(true, std::memory_order_seq_cst);
  // Bounded by one slice: a thread that enters now sees `stop_`.
  while (active_.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
  return first;
}

Copier::Copier(size_t threads) {
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

Copier::~Copier() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Copier::enqueue(std::shared_ptr<Copy> copy) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(copy));
  }
  wake_.notify_all();
}

// All threads work on the oldest copy; it leaves the queue when a thread finds nothing left to do in it.
void Copier::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const std::shared_ptr<Copy> copy = queue_.front();
    lock.unlock();
    copy->help();
    lock.lock();
    if (!queue_.empty() && queue_.front() == copy) queue_.pop_front();
  }
}

LocalPath::~LocalPath() {
  *alive_ = false;
  for (const auto& [job, copy] : copies_) copy->cancel();
}

bool LocalPath::reaches_directly(MemoryOps& local, std::span<const RegionPin>, const RegionInfo& region) const {
  if (local.host_addressable()) return reaches(region);
  SharedMemoryOps* sharing = local.sharing();
  if (sharing == nullptr || region.kind != local.kind()) return false;
  const auto mapped = link_->imports().use(*sharing, region);
  // One that has just been unregistered is told of by the copy, as such.
  return mapped.ok() || mapped.error().code == ErrorCode::not_found;
}

void LocalPath::start(std::shared_ptr<Job> job) {
  const Job* key = job.get();
  auto copy = std::make_shared<Copy>(job, link_, clock_, [this, job, alive = alive_, post = post_](Status status) {
    post([this, job, alive, ended = std::make_shared<Status>(std::move(status))] {
      if (*alive && copies_.erase(job.get()) != 0) job->done(std::move(*ended));
    });
  });
  copies_.emplace(key, copy);
  if (job->bytes <= Copier::kInlineBytes && !is_mapped(*job))
    copy->help();  // shorter than a hand-over; `done` comes in the next turn all the same
  else
    copier_.enqueue(std::move(copy));
}

bool LocalPath::cancel(const std::shared_ptr<Job>& job, Task) {
  auto entry = copies_.extract(job.get());
  if (!entry.empty()) entry.mapped()->cancel();
  return true;  // a slot is cleared with the slice that held it
}

}  // namespace kvferry::local
