#include <algorithm>
#include <cstring>

#include "test/simulator/connection.h"

namespace kvferry::simulator {

// ---- SimStream

SimStream::SimStream(Wires& wires, SimLoop& loop, ConnectionPtr connection, int end)
    : wires_(wires), loop_(loop), connection_(std::move(connection)), end_(end), watch_(loop.watch(*this)) {
  mine().stream = this;
}

SimStream::~SimStream() {
  loop_.unwatch(watch_);
  if (!connection_) return;
  mine().stream = nullptr;
  wires_.close_end(connection_, end_, reset_);
}

void SimStream::poke() {
  if (ready()) loop_.poke();
}

void SimStream::set_handler(StreamHandler* handler) {
  handler_ = handler;
  poke();
}

void SimStream::want(bool readable, bool writable) {
  want_read_ = readable;
  want_write_ = writable;
  poke();
}

void SimStream::wake_at(size_t bytes) {
  wake_at_ = bytes;
  poke();
}

// As Linux has it: half of what the buffer takes is enough.
bool SimStream::may_read() const {
  const size_t enough = std::min(wake_at_, wires_.options_.buffer_bytes / 2);
  return mine().established && (mine().fin_seen || mine().unread() >= enough);
}

size_t SimStream::room() const {
  const size_t used = mine().in_flight + other().unread();
  return used < wires_.options_.buffer_bytes ? wires_.options_.buffer_bytes - used : 0;
}

bool SimStream::ready() const {
  if (handler_ == nullptr || !connection_) return false;
  if (broken()) return true;
  return (want_read_ && may_read()) || (want_write_ && mine().established && room() > 0);
}

void SimStream::dispatch() {
  const bool readable = broken() || (want_read_ && may_read());
  const bool writable = broken() || (want_write_ && mine().established && room() > 0);
  handler_->on_stream_ready(readable, writable);
}

size_t SimStream::drawn(size_t most) const {
  if (most < 2 || wires_.random_.below(100) >= wires_.options_.partial) return most;
  return 1 + wires_.random_.below(most - 1);
}

Error SimStream::gone(const char* message, const char* cause) const {
  return Error{ErrorCode::peer_lost, message, cause, peer_address(), {}};
}

Result<size_t> SimStream::read(std::span<const iovec> into) {
  if (!connection_) return gone("cannot read from the connection", "the process has ended");
  Connection::End& end = mine();
  if (end.failed) return Error{ErrorCode::unavailable, "cannot read from the connection", "Connection refused"};
  if (!end.established) return size_t{0};
  size_t wanted = 0;
  for (const iovec& part : into) wanted += part.iov_len;
  const size_t count = drawn(std::min(wanted, end.unread()));
  if (count == 0) {
    if (end.reset_seen) return gone("cannot read from the connection", "Connection reset by peer");
    if (end.fin_seen) return gone("connection closed by the other side", "");
    return size_t{0};
  }
  size_t left = count;
  for (const iovec& part : into) {
    const size_t here = std::min(left, part.iov_len);
    std::memcpy(part.iov_base, end.readable.data() + end.read_at, here);
    end.read_at += here;
    left -= here;
    if (left == 0) break;
  }
  if (end.unread() == 0) {
    end.readable.clear();
    end.read_at = 0;
  }
  wires_.poke(*connection_, 1 - end_);
  return count;
}

Result<size_t> SimStream::write(std::span<const iovec> from) {
  if (!connection_) return gone("cannot write to the connection", "the process has ended");
  if (mine().failed) return Error{ErrorCode::unavailable, "cannot write to the connection", "Connection refused"};
  if (mine().reset_seen) return gone("cannot write to the connection", "Connection reset by peer");
  if (!mine().established) return size_t{0};
  size_t wanted = 0;
  for (const iovec& part : from) wanted += part.iov_len;
  const size_t count = drawn(std::min(wanted, room()));
  if (count == 0) return size_t{0};
  std::string bytes;
  bytes.reserve(count);
  for (const iovec& part : from) {
    const size_t here = std::min(count - bytes.size(), part.iov_len);
    bytes.append(static_cast<const char*>(part.iov_base), here);
    if (bytes.size() == count) break;
  }
  wires_.send(connection_, end_, Wires::Kind::data, std::move(bytes));
  return count;
}

bool SimStream::torn() const {
  return !connection_ || broken() || mine().fin_seen;
}

bool SimStream::has_input() const {
  return connection_ && (broken() || may_read());
}

std::string SimStream::peer_address() const {
  return connection_ ? Wires::address_of(other().host).to_string() : std::string("nobody");
}

// ---- SimListener

SimListener::SimListener(Wires& wires, HostIndex host, SimLoop& loop, Network::Accepted accepted)
    : wires_(wires), host_(host), loop_(loop), accepted_(std::move(accepted)), watch_(loop.watch(*this)) {
  wires_.hosts_[host_].listener = this;
}

SimListener::~SimListener() {
  loop_.unwatch(watch_);
  if (wires_.hosts_[host_].listener == this) wires_.hosts_[host_].listener = nullptr;
  for (const ConnectionPtr& waiting : backlog_) wires_.close_end(waiting, 1, true);
}

void SimListener::add(ConnectionPtr connection) {
  backlog_.push_back(std::move(connection));
  loop_.poke();
}

void SimListener::dispatch() {
  for (size_t left = backlog_.size(); left > 0 && !backlog_.empty(); --left) {
    const ConnectionPtr connection = std::move(backlog_.front());
    backlog_.pop_front();
    if (connection->ends[1].open) accepted_(std::make_unique<SimStream>(wires_, loop_, connection, 1));
  }
}

}  // namespace kvferry::simulator
