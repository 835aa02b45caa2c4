#include <fmt/format.h>

#include <algorithm>

#include "engine/parcel/reader.h"

// The one outcome of a read, and the words for it; and what is not read.

namespace kvferry {
namespace {

constexpr size_t kMostReleases = 16384;  // that owners have not answered

}  // namespace

void ParcelReader::accept_share(const ReadPtr& read, size_t index) {
  Share& share = read->shares[index];
  share.state = transition(share.state, ReadEvent::verdict_valid);
  KVF_CHECK(share.state == ReadState::accepted);
  by_number_.erase(share.number);
  for (const Share& other : read->shares)
    if (other.state != ReadState::accepted) return;
  ParcelOutcome outcome;
  outcome.state = ReadState::accepted;
  outcome.bytes = read->bytes;
  outcome.tokens = read->request.end_token;
  outcome.fabric = read->fabric;
  finish(read, std::move(outcome));
}

// The fabric may know the job for a moment longer, and the blocks' regions need not wait for that.
void ParcelReader::let_go_of_job(Share& share) {
  if (share.job) share.job->pins.clear();
  share.job.reset();
}

// Nothing more lands in the blocks for this share when this returns (I4); but where it returns false, a device that
// could not be stopped may still write to them, which stay pinned.
bool ParcelReader::stop_share(Share& share) {
  const bool path_stands = share.job_path != nullptr && core_.peer(share.peer).one_sided_path() == share.job_path;
  if (share.pieces)
    share.pieces->stop(path_stands);
  else if (share.job && path_stands)
    share.job_path->cancel(share.job, {});
  const bool loose = share.job && share.job->loose;
  share.pieces.reset();
  let_go_of_job(share);
  if (tcp::FetchPath* path = core_.peer(share.peer).fetch_path(); path != nullptr && share.fetch != 0)
    path->cancel(share.fetch);
  share.fetch = 0;
  if (share.sink) std::exchange(share.sink, nullptr)->stop();
  return !loose;
}

void ParcelReader::give_up(const ReadPtr& read, ReadState state, const Error& why, size_t at_fault) {
  if (std::exchange(read->over, true)) return;  // from here on: a session that breaks below must not take it up again
  Error explained = explain(*read, why, at_fault);
  for (Share& share : read->shares) {
    stop_share(share);
    by_number_.erase(share.number);
    if (is_final(share.state)) continue;
    share.state = state;
    // The owner need not wait for this reader.
    if (InitiatorSession* session = core_.peer(share.peer).session();
        session != nullptr && share.incarnation == session->peer().incarnation) {
      proto::Frame frame;
      frame.mutable_settle()->set_number(share.number);
      frame.mutable_settle()->set_code(static_cast<uint32_t>(why.code));
      frame.mutable_settle()->set_more(read->request.more);
      frame.mutable_settle()->set_one_way(true);
      session->send_parcel(frame);
    }
  }
  ParcelOutcome outcome;
  outcome.state = state;
  outcome.status = std::move(explained);
  outcome.fabric = read->fabric;
  finish(read, std::move(outcome));
}

void ParcelReader::finish(const ReadPtr& read, ParcelOutcome outcome) {
  read->over = true;
  read->pins.clear();
  read->timer.reset();
  read->in_use.reset();
  read->extension.reset();
  reads_.erase(read->id);
  const Done done = std::exchange(read->done, nullptr);
  done(outcome);
}

// ---- what went wrong

// What an unfinished share waits for.
std::string ParcelReader::stage_of(const Share& share) const {
  const InitiatorSession* session = core_.peer(share.peer).session();
  if (session == nullptr)
    return share.last_error.empty() ? "no session" : "no session; last error: " + share.last_error;
  if (session->silence() > core_.identity().heartbeat * 3 / 2)
    return fmt::format("no heartbeat for {:.1f} s", seconds(session->silence()));
  if (share.state == ReadState::reading) return "its bytes were on the way";
  if (share.state == ReadState::settling) return "it had not told its verdict";
  return share.ticket ? "another owner had not granted the claim" : "it had not granted the claim";
}

// As transfers tell it: which peer, how long, what was under way, and how far that was.
Error ParcelReader::explain(const Read& read, const Error& why, size_t at_fault) const {
  const auto unfinished =
      std::find_if(read.shares.begin(), read.shares.end(), [](const Share& share) { return !is_final(share.state); });
  if (at_fault == kNobody) at_fault = static_cast<size_t>(unfinished - read.shares.begin());
  if (at_fault >= read.shares.size())
    return Error{why.code, fmt::format("parcel \"{}\": {}", read.request.transfer_id, why.to_string())};
  const Share& share = read.shares[at_fault];
  const std::string& peer = share.owner_id;
  std::string text =
      fmt::format("parcel \"{}\" of peer \"{}\" ({}) failed after {:.1f} s: {}", read.request.transfer_id,
                  peer.empty() ? "?" : peer, core_.peer(share.peer).address().to_string(),
                  seconds(loop_.now() - read.began), why.to_string());
  if (!read.begun && read.request.event != 0)
    text += "; what still uses its blocks was not done, and nothing was asked of the owner";
  else if (!is_final(share.state))
    text += "; " + stage_of(share);
  if (read.shares.size() > 1) {
    const auto done = std::count_if(read.shares.begin(), read.shares.end(),
                                    [](const Share& one) { return one.state == ReadState::accepted; });
    text += fmt::format("; {} of {} owners done", done, read.shares.size());
  }
  if (!read.fabric.empty()) {
    uint64_t here = share.state == ReadState::settling ? share.bytes : 0;
    if (share.job) here = share.job->bytes_done.load();
    if (share.sink) here = share.bytes - share.sink->left();
    text += fmt::format("; fabric {}; {} of {} bytes here", read.fabric, here, share.bytes);
  }
  return Error{why.code, std::move(text), {}, peer, read.fabric};
}

// ---- releases

void ParcelReader::release(EngineCore::PeerIndex owner, const std::string& transfer_id, bool force,
                           TimePoint deadline) {
  listen_to(owner);
  if (releases_.size() >= kMostReleases) releases_.erase(releases_.begin());  // I6: its lease ends it
  const uint64_t number = next_number_++;
  releases_.emplace(number, Release{owner, transfer_id, force, deadline});
  send_release(number);
}

void ParcelReader::send_release(uint64_t number) {
  const auto asked = releases_.find(number);
  if (asked == releases_.end()) return;
  if (loop_.now() >= asked->second.deadline) return static_cast<void>(releases_.erase(asked));
  asked->second.starting = true;
  core_.peer(asked->second.owner).connect([this, alive = alive_, number](const Status& status) {
    if (!*alive) return;
    const auto found = releases_.find(number);
    if (found == releases_.end()) return;
    Release& release = found->second;
    release.starting = false;
    if (!status.ok()) return send_release_later(number, release);  // the others are told for themselves
    proto::Frame frame;
    frame.mutable_release()->set_number(number);
    frame.mutable_release()->set_transfer_id(release.transfer_id);
    frame.mutable_release()->set_force(release.force);
    core_.peer(release.owner).session()->send_parcel(frame);
  });
}

void ParcelReader::send_releases_again(EngineCore::PeerIndex owner) {
  for (auto& [number, release] : releases_)
    if (release.owner == owner) send_release_later(number, release);
}

// In a later turn: the session that broke is still on the stack.
void ParcelReader::send_release_later(uint64_t number, Release& release) {
  if (std::exchange(release.starting, true)) return;
  loop_.defer([this, alive = alive_, number] {
    if (*alive) send_release(number);
  });
}

}  // namespace kvferry
