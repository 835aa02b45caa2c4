#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/fabric/plugin/path.h"

// The connection under a path: made when it is needed, ended whole when anything on it goes wrong.

namespace kvferry::plugin {
namespace {

constexpr Duration kFirstBackoff = std::chrono::milliseconds(50);
constexpr Duration kLongestBackoff = std::chrono::seconds(2);
constexpr int kTriesBehindABreak = 3;

}  // namespace

// A handshake that was lost costs half of the patience, not the transfer.
void PluginPath::connect(bool again) {
  if (breaking_ || redial_.armed()) return;  // the redial comes back here
  state_ = State::connecting;
  endpoint_number_ = node_.add(this);
  Why why;
  if (node_.table().connect(node_.handle(), address_.c_str(), endpoint_number_, &endpoint_, why.text()) != KVF_OK) {
    endpoint_ = nullptr;
    // In a later turn: whoever starts a job does not expect its end in the same call.
    loop_.defer([this, alive = alive_, text = why.str()] {
      if (*alive && state_ == State::connecting) lost(text);
    });
    return;
  }
  patience_.arm(loop_.now() + options_.connect_patience / 2, [this, again] {
    const std::string silence = fmt::format("no answer for {:.1f} s", seconds(options_.connect_patience));
    if (again) return lost(silence);
    end_connection(silence);
    connect(true);
  });
  // Only when this ends the connection stands: keys that were imported before would reach the peer's memory by its CPU.
  loop_.defer([this, alive = alive_, number = endpoint_number_] {
    if (!*alive || state_ != State::connecting || number != endpoint_number_) return;
    ask_flush([this, alive, number](int32_t result, const std::string& text) {
      if (*alive && state_ == State::connecting && number == endpoint_number_) on_connected(result, text);
    });
  });
}

void PluginPath::on_connected(int32_t result, const std::string& why) {
  if (result != KVF_OK) return lost(why);
  patience_.cancel();
  state_ = State::ready;
  backoff_ = Duration(0);
  last_error_.clear();
  if (std::exchange(said_, false)) options_.logger->info("{} is connected to {}", fabric(), address_);
  unsure_ = false;  // the owner has ended what came before, with all that was on its way
  for (const Task& task : std::exchange(after_connect_, {})) task();
  pump();
}

void PluginPath::lost(const std::string& why) {
  if (breaking_ || state_ == State::idle || state_ == State::closed) return;
  if (state_ == State::connecting && options_.has_stand_in) say_that_others_stand_in(why);
  break_connection(why);
}

// Once, however often it is tried: who has asked for a fast fabric is served by a slow one from here on.
void PluginPath::say_that_others_stand_in(const std::string& why) {
  if (std::exchange(said_, true)) return;
  options_.logger->warning("{} cannot connect to {}, so that another fabric stands in until it can: {}", fabric(),
                           address_, why);
}

void PluginPath::end_connection(const std::string& why) {
  breaking_ = true;
  state_ = State::idle;
  patience_.cancel();
  node_.remove(endpoint_number_);
  last_error_ = why;
  if (endpoint_ != nullptr) {
    const auto patience = std::chrono::duration_cast<std::chrono::milliseconds>(options_.quiet_patience);
    const int32_t result =
        node_.table().disconnect(std::exchange(endpoint_, nullptr), static_cast<uint32_t>(patience.count()));
    node_.turn();  // tells the ends of all that was in flight, and arms what disconnect() has used up
    if (result != KVF_OK) {
      // What was not ended has not arrived either, and is never told.
      in_flight_.each_work([this](const WorkPtr& work) {
        fail(work, Error{ErrorCode::peer_lost, "an operation on a connection that broke could not be ended"});
      });
      for (const auto& [job, work] : works_) work->confirming = false;
      in_flight_.orphan_all();
    }
  }
  keys_.drop_all();
  breaking_ = false;
}

// One bad operation takes the connection down with all that was on it; reads are asked for again on the next one. A
// write of which something was under way is over: a second copy of it might meet what the owner does with it.
void PluginPath::break_connection(const std::string& why) {
  const bool stood = state_ == State::ready;
  end_connection(why);
  backoff_ = std::clamp(backoff_ * 2, kFirstBackoff, kLongestBackoff);
  redial_.arm(loop_.now() + (stood ? kFirstBackoff : backoff_), [this] { connect_later(); });
  const Error error{stood ? ErrorCode::peer_lost : ErrorCode::unavailable,
                    fmt::format("the connection of fabric {} {}", fabric(), stood ? "broke" : "cannot be made"), why};
  if (stood) tries_ = kTriesBehindABreak;
  // An owner that has ended the connection refuses the next until it has heard that this side knows why.
  if (!stood && !options_.has_stand_in && tries_ > 0) {
    --tries_;
    return;
  }
  if (!stood) return fail_all(error);
  std::vector<WorkPtr> all;
  for (const auto& [job, work] : works_) all.push_back(work);
  for (const WorkPtr& work : all) {
    unsure_ |= work->exposed;
    if (work->ended) continue;
    const bool touched = work->exposed || (!work->writes() && !work->again.empty());
    if (touched && (work->writes() || ++work->breaks >= options_.attempts)) fail(work, error);
    if (work->has_pieces())
      enqueue(work);
    else
      settle(work);
  }
}

void PluginPath::connect_later() {
  const bool wanted = !queue_.empty() || !after_connect_.empty() || (options_.has_stand_in && failing());
  if (state_ == State::idle && wanted) connect();
}

void PluginPath::fail_all(const Error& error) {
  std::vector<WorkPtr> all;
  for (const auto& [job, work] : works_) all.push_back(work);
  for (const WorkPtr& work : all) {
    if (work->ended) continue;
    if (work->queued) std::erase(queue_, work);
    work->queued = false;
    fail(work, error);
    settle(work);
  }
}

bool PluginPath::close() {
  if (state_ == State::closed) return !unsure_;
  const bool connected = state_ == State::ready || state_ == State::connecting;
  for (const auto& [job, work] : works_) {
    unsure_ |= work->exposed;
    fail(work, Error{ErrorCode::peer_lost, "the session is over"});
  }
  redial_.cancel();
  if (connected) {
    std::unordered_map<const Job*, WorkPtr> kept = std::move(works_);  // nobody is told: they wait for their cancel()
    works_.clear();
    for (const auto& [job, work] : kept) work->ended = true;
    break_connection("closed");
    works_ = std::move(kept);
    redial_.cancel();
  }
  state_ = State::closed;
  queue_.clear();
  after_connect_.clear();
  return !unsure_;
}

}  // namespace kvferry::plugin
