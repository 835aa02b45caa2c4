#include "engine/fabric/tcp/path.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

// Chunks on their way by lanes. Those of memory that the CPU cannot touch come by path_staging.cc first.

namespace kvferry::tcp {
namespace {

std::vector<iovec> local_iovecs(const Job& job, const Chunk& chunk) {
  std::vector<iovec> out;
  out.reserve(chunk.count);
  for_each_pair(job.pairs, chunk, [&](const Pair& pair) { out.push_back({pair.local, pair.length}); });
  return out;
}

std::string request_head(const Job& job, const Chunk& chunk, uint64_t op) {
  std::string table;
  encode_spans(job.pairs, chunk, table);
  Header header;
  header.type = job.operation == Operation::read ? FrameType::read : FrameType::write;
  header.op = op;
  header.table_bytes = static_cast<uint32_t>(table.size());
  header.payload_bytes = job.operation == Operation::write ? chunk.bytes : 0;
  std::string head;
  encode_header(header, head);
  return head + table;
}

}  // namespace

TcpPath::TcpPath(Loop& loop, LaneSource& source, Staging& staging, PathOptions options)
    : loop_(loop), source_(source), staging_(staging), options_(options), lanes_(1 + options.bulk_lanes) {}

TcpPath::~TcpPath() {
  *alive_ = false;
  for (LaneState& state : lanes_)
    if (state.lane) state.lane->close(true);
}

void TcpPath::start(std::shared_ptr<Job> job) {
  const bool small = is_small(*job);
  const uint64_t chunk_bytes = small ? kMaxPayload : options_.chunk_bytes;
  auto work =
      std::make_shared<Work>(Work{job, next_work_++, Chunker(job->pairs, chunk_bytes, kMaxSpans), 0, 0, false, {}, {}});
  works_.emplace(job.get(), work);
  if (small) {
    ++work->outstanding;
    const Chunk whole = work->chunker.take();
    small_.push_back(ChunkOp{std::move(work), whole, 0, {}, {}});
  } else {
    bulk_.push_back(std::move(work));
  }
  pump();
}

bool TcpPath::ensure_lane(LaneState& state) {
  if (state.lane) return true;
  if (state.waiting) return false;
  const std::shared_ptr<bool> alive = alive_;
  LaneState* slot = &state;
  auto opened = source_.open_lane([this, alive, slot] {
    if (!*alive) return;
    slot->waiting = false;
    pump();
  });
  if (!opened) {
    fail_all(opened.error());
    return false;
  }
  if (!opened->has_value()) {
    state.waiting = true;
    return false;
  }
  LaneSource::NewLane& fresh = **opened;
  state.lane = std::make_unique<Lane>(loop_, std::move(fresh.stream), static_cast<LaneHandler&>(*this), fresh.id,
                                      std::move(fresh.preface));
  return true;
}

void TcpPath::pump() {
  if (failing_) return;
  while (!small_.empty() && ensure_lane(lanes_[0])) {
    if (lanes_[0].outstanding_bytes >= options_.lane_window) break;
    const auto next =
        std::find_if(small_.begin(), small_.end(), [&](const auto& each) { return may_begin(*each.work); });
    if (next == small_.end()) break;
    ChunkOp op = std::move(*next);
    small_.erase(next);
    send_chunk(lanes_[0], std::move(op));
  }
  while (pump_bulk()) {
  }
}

void TcpPath::pump_later() {
  loop_.defer([this, alive = alive_] {
    if (*alive) pump();
  });
}

TcpPath::LaneState* TcpPath::roomiest_bulk_lane() {
  const auto best = std::min_element(lanes_.begin() + 1, lanes_.end(), [](const LaneState& a, const LaneState& b) {
    return a.outstanding_bytes < b.outstanding_bytes;
  });
  return best->outstanding_bytes < options_.lane_window ? &*best : nullptr;
}

// Sends one chunk of the next job in turn, so that jobs share the lanes chunk by chunk (I7).
bool TcpPath::pump_bulk() {
  if (again_.empty() && bulk_.empty()) return false;
  LaneState* state = roomiest_bulk_lane();
  if (state == nullptr || !ensure_lane(*state)) return false;
  if (!again_.empty()) {
    ChunkOp op = std::move(again_.front());
    again_.pop_front();
    send_chunk(*state, std::move(op));
    return true;
  }
  const auto next = std::find_if(bulk_.begin(), bulk_.end(), [&](const auto& each) { return may_begin(*each); });
  if (next == bulk_.end()) return false;
  WorkPtr work = std::move(*next);
  bulk_.erase(next);
  const Chunk chunk = work->chunker.take();
  ++work->outstanding;
  if (!work->chunker.done()) bulk_.push_back(work);
  send_chunk(*state, ChunkOp{std::move(work), chunk, 0, {}, {}});
  return true;
}

void TcpPath::send_chunk(LaneState& state, ChunkOp op) {
  if (op.work->ended) return;
  if (op.work->job->local_ops->host_addressable()) return send_from_host(state, std::move(op));
  if (op.work->job->operation == Operation::write) return stage_and_send(state, std::move(op));
  auto buffer = staging_.take_now(*op.work->job->local_ops, op.chunk.bytes);
  if (!buffer) return finish_chunk(std::move(op), std::move(buffer).error());
  op.staging = std::move(*buffer);
  send_from_host(state, std::move(op));
}

void TcpPath::send_from_host(LaneState& state, ChunkOp op) {
  const uint64_t id = next_op_++;
  const Job& job = *op.work->job;
  OutFrame frame;
  frame.op = id;
  frame.head = request_head(job, op.chunk, id);
  if (job.operation == Operation::write) {
    if (op.staging)
      frame.payload = {{op.staging.data(), op.chunk.bytes}};
    else
      frame.payload = local_iovecs(job, op.chunk);
  }
  op.share.reset();
  state.outstanding_bytes += op.chunk.bytes;
  state.ops.emplace(id, std::move(op));
  state.lane->send(std::move(frame));
}

TcpPath::LaneState& TcpPath::state_of(const Lane& lane) {
  const auto found =
      std::find_if(lanes_.begin(), lanes_.end(), [&](const LaneState& state) { return state.lane.get() == &lane; });
  KVF_CHECK(found != lanes_.end());
  return *found;
}

Result<std::vector<iovec>> TcpPath::on_frame(Lane& lane, const Header& header, ByteSpan table) {
  LaneState& state = state_of(lane);
  const auto found = state.ops.find(header.op);
  if (found == state.ops.end()) return Error{ErrorCode::protocol, "malformed lane frame: answer to nothing"};
  ChunkOp& op = found->second;
  const bool is_read = op.work->job->operation == Operation::read;
  if ((header.type == FrameType::read_reply) != is_read || (header.type == FrameType::write_reply) == is_read)
    return Error{ErrorCode::protocol, "malformed lane frame: answer of the wrong type"};
  const uint64_t expected = is_read && header.code == 0 ? op.chunk.bytes : 0;
  if (header.payload_bytes != expected)
    return Error{ErrorCode::protocol, "malformed lane frame: answer of the wrong length"};
  if (op.work->ended) return std::vector<iovec>{};
  if (header.code != 0) {
    const std::string text(reinterpret_cast<const char*>(table.data()), table.size());
    op.work->failure = Error{code_of(header), "refused by the owner", text};
    return std::vector<iovec>{};
  }
  if (!is_read) return std::vector<iovec>{};
  if (op.staging) return std::vector<iovec>{{op.staging.data(), op.chunk.bytes}};
  return local_iovecs(*op.work->job, op.chunk);
}

void TcpPath::on_frame_end(Lane& lane, const Header& header) {
  LaneState& state = state_of(lane);
  auto entry = state.ops.extract(header.op);
  if (entry.empty()) return;
  ChunkOp op = std::move(entry.mapped());
  state.outstanding_bytes -= op.chunk.bytes;
  const bool lands_later = op.staging && op.work->job->operation == Operation::read && header.code == 0;
  if (lands_later && !op.work->ended) {
    finish_read(std::move(op));
  } else {
    Status status = op.work->failure;
    finish_chunk(std::move(op), std::move(status));
  }
  pump();
}

void TcpPath::finish_chunk(ChunkOp op, Status status) {
  const WorkPtr work = op.work;
  op.staging.release();
  if (work->ended) return;
  --work->outstanding;
  if (!status.ok()) {
    drop_chunks(work);
    return end_work(work, std::move(status));
  }
  work->job->bytes_done += op.chunk.bytes;
  work->job->spans_done += op.chunk.ended;
  end_if_complete(work);
}

// A write is not over while a lane that it was sent on before may still be applied (I4).
void TcpPath::end_if_complete(const WorkPtr& work) {
  if (work->outstanding == 0 && work->unfenced == 0 && work->chunker.done()) end_work(work, {});
}

// A failed work stays known while `done` runs: whoever is told asks cancel() whether the far side is quiet.
void TcpPath::end_work(const WorkPtr& work, Status status) {
  if (work->ended) return;
  work->ended = true;
  if (status.ok()) works_.erase(work->job.get());
  work->job->done(std::move(status));
  works_.erase(work->job.get());
}

bool TcpPath::cancel(const std::shared_ptr<Job>& job, Task far_quiet) {
  const auto found = works_.find(job.get());
  if (found == works_.end()) return true;
  const WorkPtr work = found->second;
  drop_chunks(work);
  work->ended = true;
  if (work->unfenced > 0) work->far_quiet = std::move(far_quiet);
  pump();
  works_.erase(job.get());  // behind it: what ends the session there asks about this job once more
  return work->unfenced == 0;
}

// Takes every chunk of `work` off the lanes: what has not left is withdrawn, what was being received goes to waste, and
// a write of which a byte may have left costs its lane (I4: nothing of it may be applied after we return).
void TcpPath::drop_chunks(const WorkPtr& work) {
  const auto is_ours = [&](const ChunkOp& op) { return op.work == work; };
  work->dropped = true;  // what gets a buffer from here on copies nothing into it
  // Their buffers, given back, serve others, who may come back here: at the end, when nothing is being looked through.
  std::vector<ChunkOp> dropped;
  std::erase_if(small_, is_ours);  // these have none yet
  for (ChunkOp& op : again_)
    if (is_ours(op)) dropped.push_back(std::move(op));
  std::erase_if(again_, [](const ChunkOp& op) { return op.work == nullptr; });
  std::erase(bulk_, work);
  if (!work->job->local_ops->host_addressable()) staging_.drain();

  const bool is_write = work->job->operation == Operation::write;
  for (LaneState& state : lanes_) {
    bool must_reset = false;
    for (auto entry = state.ops.begin(); entry != state.ops.end();) {
      if (!is_ours(entry->second)) {
        ++entry;
        continue;
      }
      if (state.lane->receiving(entry->first)) state.lane->discard_incoming();
      const Lane::Withdrawn withdrawn = state.lane->withdraw(entry->first);
      must_reset |= is_write && withdrawn != Lane::Withdrawn::unsent;
      if (withdrawn == Lane::Withdrawn::unsent) {
        state.outstanding_bytes -= entry->second.chunk.bytes;
        dropped.push_back(std::move(entry->second));
        entry = state.ops.erase(entry);
      } else {
        ++entry;  // a read that was asked for: its answer is thrown away when it comes
      }
    }
    if (!must_reset) continue;
    for (ChunkOp& op : reset_lane(state))
      if (!is_ours(op)) again_.push_back(std::move(op));
  }
}

// Closes a lane so that the peer does not apply what it has not read, and returns the chunks that it carried. Writes of
// which a byte may have left by it are not quiet before the peer has said that the lane is closed at its end too.
std::vector<TcpPath::ChunkOp> TcpPath::reset_lane(LaneState& state) {
  std::vector<ChunkOp> carried;
  std::vector<WorkPtr> exposed;
  for (auto& [id, op] : state.ops) {
    if (op.work->ended) continue;
    const bool is_write = op.work->job->operation == Operation::write;
    if (is_write && state.lane->withdraw(id) != Lane::Withdrawn::unsent) exposed.push_back(op.work);
    carried.push_back(std::move(op));
  }
  state.ops.clear();
  state.outstanding_bytes = 0;
  state.lane->close(true);
  for (const WorkPtr& work : exposed) ++work->unfenced;
  if (!exposed.empty())
    source_.fence_lane(state.lane->id(), [this, alive = alive_, exposed] {
      if (!*alive) return;
      for (const WorkPtr& work : exposed) on_fenced(work);
    });
  // Perhaps called from within the lane: destroyed in a later turn.
  std::shared_ptr<Lane> keep = std::move(state.lane);
  loop_.defer([keep] {});
  return carried;
}

void TcpPath::on_fenced(const WorkPtr& work) {
  if (--work->unfenced > 0) return;
  if (work->far_quiet)
    std::exchange(work->far_quiet, nullptr)();
  else if (!work->ended)
    end_if_complete(work);
}

void TcpPath::on_lost(Lane& lane, Error error) {
  std::vector<ChunkOp> ops = reset_lane(state_of(lane));
  if (error.message == "connection closed by the other side") error.cause = "its lane was closed";
  send_again(std::move(ops), error);
  pump();
}

void TcpPath::send_again(std::vector<ChunkOp> ops, const Error& error) {
  for (ChunkOp& op : ops) {
    if (op.work->ended) continue;
    if (++op.attempts >= options_.attempts)
      finish_chunk(std::move(op), error);
    else
      again_.push_back(std::move(op));
  }
}

void TcpPath::fail_all(const Error& error) {
  std::vector<WorkPtr> all;
  for (const auto& [job, work] : works_) all.push_back(work);
  std::sort(all.begin(), all.end(), [](const WorkPtr& a, const WorkPtr& b) { return a->number < b->number; });
  failing_ = true;  // who is told must not make the next lane fail for the rest, call within call
  for (const WorkPtr& work : all) {
    if (work->ended) continue;
    drop_chunks(work);
    end_work(work, error);
  }
  failing_ = false;
  pump_later();  // what was begun meanwhile
}

std::string TcpPath::describe() const {
  size_t open = 0;
  uint64_t outstanding = 0;
  for (const LaneState& state : lanes_) {
    open += state.lane != nullptr;
    outstanding += state.outstanding_bytes;
  }
  return fmt::format("{} lanes open, {} bytes outstanding", open, outstanding);
}

}  // namespace kvferry::tcp
