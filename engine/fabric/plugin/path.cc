#include "engine/fabric/plugin/path.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

// The pieces of jobs: posting, their ends, and what cancel and the owner's revocation make of them. The connection is
// in connection.cc.

namespace kvferry::plugin {
namespace {

constexpr int kPiecesPerTurn = 64;     // of one job, before the next has its turn
constexpr uint64_t kPieceCost = 2048;  // bytes as which a shorter piece counts in a turn (I7)

// How the plug-in knows local memory; null where nobody pinned it for the job: it is then registered by the way.
kvf_memory* memory_of(const Job& job, const std::byte* local, const Node& node) {
  for (const RegionPin& pin : job.pins) {
    const uint64_t offset = reinterpret_cast<uint64_t>(local) - pin->info.base;
    if (offset < pin->info.length) return static_cast<kvf_memory*>(pin.handle_of(node));
  }
  return nullptr;
}

}  // namespace

PluginPath::PluginPath(Loop& loop, Node& node, std::string owner, std::string address, PathOptions options)
    : loop_(loop),
      node_(node),
      owner_(std::move(owner)),
      address_(std::move(address)),
      options_(options),
      keys_(node),
      patience_(loop),
      redial_(loop),
      in_flight_([this](std::unique_ptr<PieceOperation> operation, int32_t result, const std::string& why) {
        on_piece(std::move(operation), result, why);
      }) {}

PluginPath::~PluginPath() {
  close();
  *alive_ = false;
  node_.give_back(owner_);
}

bool PluginPath::reaches(const RegionInfo& region) const {
  if (options_.has_stand_in && failing()) return false;
  return find_key(region, node_.fabric()) != nullptr;  // only what its owner's library could register has one
}

bool PluginPath::reaches_directly(MemoryOps& local, std::span<const RegionPin> pins, const RegionInfo& region) const {
  const auto known = [this](const RegionPin& pin) { return pin.handle_of(node_) != nullptr; };
  return reaches(region) && (local.host_addressable() || std::all_of(pins.begin(), pins.end(), known));
}

// ---- posting

void PluginPath::start(std::shared_ptr<Job> job) {
  auto work = std::make_shared<Work>();
  work->job = std::move(job);
  works_.emplace(work->job.get(), work);
  const auto& remote = work->job->remote;
  const auto gone =
      std::find_if(remote.begin(), remote.end(), [this](const auto* each) { return is_taken_back(*each); });
  if (gone == remote.end()) {
    enqueue(work);
    return pump();
  }
  // In a later turn: whoever starts a job does not expect its end in the same call.
  loop_.defer([this, alive = alive_, work, id = (*gone)->id] {
    if (!*alive || work->ended) return;
    fail(work, Error{ErrorCode::not_found, fmt::format("region {} was unregistered", id)});
    settle(work);
  });
}

// The owner has been told that nothing of ours begins any more there. A region that the table does not know yet is no
// such one: their numbers rise.
bool PluginPath::is_taken_back(const RegionInfo& region) const {
  return table_ != nullptr && region.id <= newest_ && table_->find(region.id) == nullptr;
}

void PluginPath::enqueue(const WorkPtr& work) {
  if (!std::exchange(work->queued, true)) queue_.push_back(work);
}

bool PluginPath::has_room() const {
  return in_flight_.count() < options_.window_operations && in_flight_.bytes() < options_.window_bytes;
}

// Jobs take turns piece by piece, so that a small one is not stuck behind a large one (I7).
void PluginPath::pump() {
  if (state_ != State::ready) {
    if (state_ == State::idle && !queue_.empty()) connect();
    return;
  }
  uint64_t posted = 0;
  while (!queue_.empty() && state_ == State::ready && has_room()) {
    if (posted >= options_.turn_bytes) {
      plan_pump();
      break;
    }
    const WorkPtr work = std::move(queue_.front());
    queue_.pop_front();
    work->queued = false;
    const bool busy = post_some(work, posted);
    if (work->ended) continue;
    if (work->has_pieces()) enqueue(work);
    settle(work);
    if (!busy) continue;
    if (in_flight_.count() == 0) plan_pump();  // else the next end of one pumps
    break;
  }
  node_.schedule();
}

void PluginPath::plan_pump() {
  if (std::exchange(pump_planned_, true)) return;
  loop_.defer([this, alive = alive_] {
    if (!*alive) return;
    pump_planned_ = false;
    pump();
  });
}

// True: the fabric takes no more now.
bool PluginPath::post_some(const WorkPtr& work, uint64_t& posted) {
  for (int i = 0; i < kPiecesPerTurn && !work->ended && work->has_pieces() && has_room(); ++i) {
    const Piece piece = work->take(options_.piece_bytes);
    Why why;
    const int32_t result = post(work, piece, why);
    if (result == KVF_BUSY) {
      work->again.push_back(piece);
      return true;
    }
    posted += std::max(piece.length, kPieceCost);
    if (result == KVF_PENDING) continue;
    piece_done(work, piece, result, why.str());
    if (state_ != State::ready) return true;
  }
  return false;
}

int32_t PluginPath::post(const WorkPtr& work, const Piece& piece, Why& why) {
  const Job& job = *work->job;
  const Pair& pair = job.pairs[piece.pair];
  const RegionInfo& region = *job.remote[piece.pair];
  // Checked before by who made the job; a wrong address must never leave: it costs the connection, or the peer.
  if (Status status = check_span(region, pair.offset + piece.offset, piece.length); !status.ok()) {
    fail(work, status.error());
    return KVF_FAILED;
  }
  const auto key = keys_.get(endpoint_, region);
  if (!key) {
    fail(work, key.error());
    return KVF_FAILED;
  }
  std::byte* local = pair.local + piece.offset;
  kvf_memory* memory = memory_of(job, local, node_);
  const uint64_t remote = region.base + pair.offset + piece.offset;
  auto operation = std::make_unique<PieceOperation>(in_flight_, work, piece);
  const uint64_t token = operation->token();
  work->exposed |= work->writes();
  const kvf_fabric_table& table = node_.table();
  const int32_t result = work->writes()
                             ? table.put(endpoint_, local, memory, remote, *key, piece.length, token, why.text())
                             : table.get(endpoint_, local, memory, remote, *key, piece.length, token, why.text());
  if (result == KVF_PENDING) static_cast<void>(operation.release());
  return result;
}

// ---- the end of a piece, of a job

void PluginPath::on_piece(std::unique_ptr<PieceOperation> operation, int32_t result, const std::string& why) {
  const WorkPtr work = operation->work();
  const Piece piece = operation->piece();
  operation.reset();  // no longer in flight
  piece_done(work, piece, result, why);
  pump();
}

void PluginPath::piece_done(const WorkPtr& work, const Piece& piece, int32_t result, const std::string& why) {
  if (result == KVF_OK) {
    work->job->bytes_done += piece.length;
    work->job->spans_done += piece.last;
  } else if (result == KVF_FAILED) {
    fail(work, Error{ErrorCode::unavailable, fmt::format("fabric {} refuses the transfer", fabric()), why});
  } else {
    work->again.push_back(piece);
    lost(why);  // all that is in flight goes the same way
  }
  settle(work);
}

// The rest of it is not posted; what is in flight ends first.
void PluginPath::fail(const WorkPtr& work, Error error) {
  if (work->failure.ok()) work->failure = std::move(error);
  work->again.clear();
}

// A job whose last piece has ended: a read is done, a write is when the peer can see it.
void PluginPath::settle(const WorkPtr& work) {
  if (work->ended || work->in_flight > 0 || work->has_pieces() || work->confirming || breaking_) return;
  if (work->exposed && state_ == State::ready) return confirm_write(work);
  if (work->exposed && work->failure.ok()) return;  // its connection is being ended, which fails it
  if (Status settled = settle_writes(*work->job, work->job->pins); !settled.ok())
    fail(work, std::move(settled).error());
  finish(work, work->failure);
}

void PluginPath::ask_flush(Question::Answer answer) {
  auto question = std::make_unique<Question>(std::move(answer));
  const auto token = reinterpret_cast<uint64_t>(static_cast<Posted*>(question.get()));
  Why why;
  const int32_t result = node_.table().flush(endpoint_, token, why.text());
  if (result == KVF_PENDING)
    static_cast<void>(question.release());
  else
    question.release()->ended(result == KVF_BUSY ? int32_t{KVF_LOST} : result, why.str());
  node_.schedule();
}

// I8: complete is what has arrived in the peer's memory, not what has left.
void PluginPath::confirm_write(const WorkPtr& work) {
  work->confirming = true;
  ask_flush([this, alive = alive_, work, number = endpoint_number_](int32_t result, const std::string& why) {
    if (!*alive || number != endpoint_number_) return;
    work->confirming = false;
    if (result != KVF_OK) {
      lost(why);
      return settle(work);
    }
    if (state_ != State::ready) return settle(work);  // told while its connection is being ended: it confirms nothing
    if (node_.enforces_keys() && work->failure.ok() && !work->ended) return read_back(work, to_read_back(*work->job));
    work->exposed = false;
    settle(work);
  });
}

// I8: a device answers for a write when it has it; a read that follows on the same connection pushes it into memory, of
// the GPU that is read. `rest`: the pairs that are still to be read.
void PluginPath::read_back(const WorkPtr& work, std::vector<size_t> rest) {
  const Pair& pair = work->job->pairs[rest.back()];
  const RegionInfo& region = *work->job->remote[rest.back()];
  rest.pop_back();
  const auto key = keys_.get(endpoint_, region);
  if (!key) return fail(work, key.error()), finish(work, work->failure);
  work->confirming = true;
  auto question = std::make_unique<Question>([this, alive = alive_, work, echo = echo_, number = endpoint_number_,
                                              rest = std::move(rest)](int32_t result, const std::string& why) {
    if (!*alive || number != endpoint_number_) return;
    work->confirming = false;
    if (result != KVF_OK)
      lost(why);
    else if (rest.empty() || !work->failure.ok() || work->ended)
      work->exposed = false;
    else if (state_ == State::ready)
      return read_back(work, rest);
    settle(work);
  });
  const auto token = reinterpret_cast<uint64_t>(static_cast<Posted*>(question.get()));
  Why why;
  const int32_t result = node_.table().get(endpoint_, echo_.get(), nullptr, region.base + pair.offset + pair.length - 1,
                                           *key, 1, token, why.text());
  if (result == KVF_PENDING)
    static_cast<void>(question.release());
  else
    question.release()->ended(result == KVF_BUSY ? int32_t{KVF_LOST} : result, why.str());
  node_.schedule();
}

// A failed work stays known while `done` runs: whoever is told asks cancel() whether the far side is quiet.
void PluginPath::finish(const WorkPtr& work, Status status) {
  if (std::exchange(work->ended, true)) return;
  const auto over = std::exchange(work->when_over, {});
  const auto done = std::move(work->job->done);  // whoever is told may give the job to another path
  done(std::move(status));
  works_.erase(work->job.get());
  for (const Task& task : over) task();
}

bool PluginPath::wait_for(const std::function<bool()>& condition, Duration patience) {
  const TimePoint until = loop_.now() + patience;
  while (!condition()) {
    if (loop_.now() >= until) return false;
    node_.turn();
  }
  return true;
}

// I4: what the fabric has and does not give back is waited for, briefly, and then ended with its connection.
bool PluginPath::cancel(const std::shared_ptr<Job>& job, Task far_quiet) {
  const auto entry = works_.extract(job.get());
  if (entry.empty()) return true;
  const WorkPtr work = entry.mapped();
  work->ended = true;
  fail(work, Error{ErrorCode::cancelled, "cancelled"});
  std::erase(queue_, work);
  if (work->in_flight > 0 && endpoint_ != nullptr) {  // else its connection is being ended
    const std::vector<uint64_t> tokens = in_flight_.tokens_of(work);
    node_.table().cancel(endpoint_, tokens.data(), tokens.size());
  }
  const auto drained = [&] { return work->in_flight == 0; };
  if (!wait_for(drained, options_.cancel_patience)) break_connection("a cancelled operation did not end");
  static_cast<void>(settle_writes(*work->job, work->job->pins));  // a device that cannot has failed
  unsure_ |= work->exposed && state_ != State::ready;
  for (const Task& task : std::exchange(work->when_over, {})) task();
  pump();
  if (!work->exposed) return true;
  const auto confirmed = std::make_shared<bool>(false);
  const auto told = std::make_shared<Task>();
  barrier([confirmed, told] {
    *confirmed = true;
    if (*told) (*told)();
  });
  if (state_ == State::ready) wait_for([&] { return *confirmed; }, options_.cancel_patience);
  if (!*confirmed) *told = std::move(far_quiet);
  return *confirmed;
}

void PluginPath::barrier(Task task) {
  if (state_ == State::closed) return;  // the session is over, and with it whoever would hear
  if (!needs_barrier()) return task();
  if (state_ != State::ready) {
    after_connect_.push_back(std::move(task));
    if (state_ == State::idle) connect();
    return;
  }
  ask_flush([this, alive = alive_, task = std::move(task)](int32_t result, const std::string& why) {
    if (!*alive) return;
    if (result == KVF_OK && state_ == State::ready) return task();
    lost(why);
    unsure_ = true;
    barrier(task);
  });
}

void PluginPath::retire(const std::shared_ptr<const RegionTable>& table, Task quiet) {
  const auto is_gone = [&](const RegionInfo* region) { return table->find(region->id) == nullptr; };
  table_ = table;
  if (!table->regions().empty()) newest_ = std::max(newest_, table->regions().back().id);
  std::vector<WorkPtr> leaving;
  for (const auto& [job, work] : works_)
    if (!work->ended && std::any_of(job->remote.begin(), job->remote.end(), is_gone)) leaving.push_back(work);
  // Runs when the last of them has let go.
  const std::shared_ptr<void> all_left(nullptr, [this, alive = alive_, table, quiet = std::move(quiet)](void*) {
    if (!*alive) return;
    keys_.drop_missing(*table);
    barrier(quiet);
  });
  for (const WorkPtr& work : leaving) {
    work->when_over.emplace_back([all_left] {});
    for (const RegionInfo* region : work->job->remote)
      if (is_gone(region)) {
        fail(work, Error{ErrorCode::not_found, fmt::format("region {} was unregistered", region->id)});
        break;
      }
    if (work->queued) std::erase(queue_, work);
    work->queued = false;
    settle(work);
  }
}

std::string PluginPath::describe() const {
  const char* state = state_ == State::ready        ? "connected"
                      : state_ == State::connecting ? "connecting"
                      : state_ == State::idle       ? "not connected"
                                                    : "closed";
  std::string out = fmt::format("{} to {}, {} operations in flight", state, address_, in_flight_.count());
  if (!last_error_.empty()) out += "; last error: " + last_error_;
  return out;
}

}  // namespace kvferry::plugin
