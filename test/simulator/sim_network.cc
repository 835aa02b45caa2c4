#include "test/simulator/sim_network.h"

#include <algorithm>
#include <utility>

#include "test/simulator/connection.h"

namespace kvferry::simulator {
namespace {

constexpr uint16_t kPort = 7100;
// A kernel's patience before it sends again what was not acknowledged.
constexpr Duration kRetransmission = std::chrono::milliseconds(200);
// After so long without a sign of the other kernel, the engine's sockets give up (SocketOptions::silence). A kernel
// that has forgotten the connection answers their probes by a reset, no later than that.
constexpr Duration kKeepAlive = std::chrono::seconds(12);

}  // namespace

Wires::Wires(Timeline& timeline, Random& random, History& history, size_t hosts, Options options)
    : timeline_(timeline),
      random_(random),
      history_(history),
      options_(options),
      hosts_(hosts),
      links_(hosts * hosts) {}

Wires::~Wires() = default;

Address Wires::address_of(HostIndex host) {
  return Address{fmt::format("10.0.0.{}", host + 1), kPort};
}

// ---- packets

void Wires::send(const ConnectionPtr& connection, int from, Kind kind, std::string bytes) {
  Connection::End& end = connection->ends[from];
  const Link& way = link(end.host, connection->ends[1 - from].host);
  Duration delay = options_.least_delay +
                   Duration(static_cast<int64_t>(random_.below(static_cast<uint64_t>(options_.jitter.count()) + 1)));
  delay += way.per_byte * static_cast<int64_t>(bytes.size());
  TimePoint when = timeline_.now() + delay;
  // A reset overtakes the bytes that wait for a slow link: they die with the sender's end.
  if (kind != Kind::reset) when = end.last_arrival = std::max(when, end.last_arrival);
  end.in_flight += bytes.size();
  auto packet = std::make_shared<Packet>(Packet{connection, 1 - from, kind, std::move(bytes), end.epoch});
  timeline_.at(when, [this, packet] { arrive(std::move(*packet)); });
}

void Wires::arrive(Packet packet) {
  const HostIndex from = packet.connection->ends[1 - packet.to].host;
  const HostIndex to = packet.connection->ends[packet.to].host;
  Link& way = link(from, to);
  if (packet.connection->swallowed) return;
  if (way.blocked || !hosts_[to].up || !way.held.empty()) {
    if (packet.kind != Kind::reset && packet.kind != Kind::refused) way.held.push_back(std::move(packet));
    return;
  }
  deliver(packet);
}

void Wires::deliver(const Packet& packet) {
  Connection& connection = *packet.connection;
  Connection::End& end = connection.ends[packet.to];
  Connection::End& sender = connection.ends[1 - packet.to];
  if (packet.epoch != sender.epoch) return;  // it died with the sender's socket
  history_.mark(static_cast<uint64_t>(packet.kind) + (packet.bytes.size() << 8), connection.id);
  sender.in_flight -= packet.bytes.size();
  if (packet.kind == Kind::syn) return connect(packet);
  if (!end.open) {
    if (packet.kind != Kind::reset && packet.kind != Kind::refused) send(packet.connection, packet.to, Kind::reset);
    return;
  }
  if (end.reset_seen || end.failed) return;
  switch (packet.kind) {
    case Kind::syn:
      break;
    case Kind::syn_ack:
      end.established = true;
      break;
    case Kind::refused:
      end.failed = true;
      break;
    case Kind::data:
      end.readable.append(packet.bytes);
      break;
    case Kind::fin:
      end.fin_seen = true;
      break;
    case Kind::reset:
      (end.established ? end.reset_seen : end.failed) = true;
      break;
  }
  poke(connection, packet.to);
}

void Wires::connect(const Packet& packet) {
  Connection& connection = *packet.connection;
  Connection::End& end = connection.ends[1];
  SimListener* listener = hosts_[end.host].listener;
  if (listener == nullptr) return send(packet.connection, 1, Kind::refused);
  end.open = end.established = true;
  connections_.emplace(connection.id, packet.connection);  // again, if the dialler has left already
  send(packet.connection, 1, Kind::syn_ack);
  listener->add(packet.connection);
}

void Wires::poke(const Connection& connection, int end) {
  if (connection.ends[end].stream != nullptr) connection.ends[end].stream->poke();
}

// What a kernel does when the last descriptor of an end is closed.
void Wires::close_end(const ConnectionPtr& connection, int at, bool reset) {
  Connection::End& end = connection->ends[at];
  if (!end.open) return;
  const bool abrupt = reset || end.unread() > 0;
  if (abrupt && random_.below(2) == 0) {
    ++end.epoch;  // some of it had not left the host
    end.in_flight = 0;
  }
  if (!end.reset_seen && !end.failed) send(connection, at, abrupt ? Kind::reset : Kind::fin);
  end.readable.clear();
  end.read_at = 0;
  forget_end(connection, at);
  if (!abrupt) return;
  // Nobody sends it again.
  auto& held = link(end.host, connection->ends[1 - at].host).held;
  std::erase_if(held, [&](const Packet& packet) { return packet.connection == connection && packet.to == 1 - at; });
}

// A reset that is lost, or that came from outside, leaves the other end to its probes.
void Wires::forget_end(const ConnectionPtr& connection, int at) {
  connection->ends[at].open = false;
  if (!connection->ends[1 - at].open)
    connections_.erase(connection->id);
  else
    timeline_.in(kKeepAlive, [this, connection, at] { reset_ends(*connection, 1 - at); });
}

// ---- faults

void Wires::disturb(HostIndex from, HostIndex to) {
  link(from, to).disturbed = timeline_.now();
}

void Wires::block(HostIndex from, HostIndex to) {
  link(from, to).blocked = true;
  disturb(from, to);
}

void Wires::unblock(HostIndex from, HostIndex to) {
  Link& way = link(from, to);
  if (!std::exchange(way.blocked, false)) return;
  disturb(from, to);
  const Duration wait(static_cast<int64_t>(random_.below(static_cast<uint64_t>(kRetransmission.count()))));
  timeline_.in(wait, [this, from, to] {
    Link& again = link(from, to);
    if (again.blocked || !hosts_[to].up) return;
    disturb(from, to);
    const std::deque<Packet> held = std::exchange(again.held, {});
    for (const Packet& packet : held) deliver(packet);
  });
}

void Wires::set_up(HostIndex host, bool up) {
  hosts_[host].up = up;
  for (HostIndex other = 0; other < hosts_.size(); ++other) {
    disturb(other, host);
    disturb(host, other);
    if (!up || link(other, host).blocked) continue;
    link(other, host).blocked = true;
    unblock(other, host);
  }
}

void Wires::drop_host(HostIndex host, bool silently) {
  const std::map<uint64_t, ConnectionPtr> all = connections_;
  for (const auto& [id, connection] : all)
    for (int at = 0; at < 2; ++at) {
      Connection::End& end = connection->ends[at];
      if (end.host != host || !end.open) continue;
      if (end.stream != nullptr) end.stream->detach();
      end.stream = nullptr;
      if (!silently) {
        close_end(connection, at, false);
        continue;
      }
      ++end.epoch;
      end.in_flight = 0;
      forget_end(connection, at);
    }
}

ConnectionPtr Wires::draw_connection() {
  if (connections_.empty()) return nullptr;
  auto at = connections_.begin();
  std::advance(at, static_cast<ptrdiff_t>(random_.below(connections_.size())));
  return at->second;
}

void Wires::reset_ends(Connection& connection, int only) {
  for (int at = 0; at < 2; ++at) {
    Connection::End& end = connection.ends[at];
    if ((only >= 0 && at != only) || !end.open) continue;
    (end.established ? end.reset_seen : end.failed) = true;
    poke(connection, at);
  }
}

bool Wires::reset_any(bool one_side) {
  const ConnectionPtr connection = draw_connection();
  if (!connection) return false;
  reset_ends(*connection, one_side ? static_cast<int>(random_.below(2)) : -1);
  history_.say("connection {} is reset from outside{}", connection->id, one_side ? ", for one end" : "");
  disturb(connection->ends[0].host, connection->ends[1].host);
  disturb(connection->ends[1].host, connection->ends[0].host);
  return true;
}

bool Wires::swallow_any() {
  const ConnectionPtr connection = draw_connection();
  if (!connection) return false;
  connection->swallowed = true;
  timeline_.in(kKeepAlive, [this, connection] { reset_ends(*connection, -1); });
  history_.say("connection {} ({} to {}) is silent from now on", connection->id, connection->ends[0].host,
               connection->ends[1].host);
  disturb(connection->ends[0].host, connection->ends[1].host);
  disturb(connection->ends[1].host, connection->ends[0].host);
  return true;
}

bool Wires::calm_since(HostIndex a, HostIndex b, TimePoint when) const {
  const auto calm = [&](const Link& way) { return !way.blocked && way.held.empty() && way.disturbed < when; };
  return calm(link(a, b)) && calm(link(b, a));
}

size_t Wires::streams_of(HostIndex host) const {
  size_t count = 0;
  for (const auto& [id, connection] : connections_)
    for (const Connection::End& end : connection->ends) count += end.host == host && end.stream != nullptr;
  return count;
}

size_t Wires::lone_streams_of(HostIndex host) const {
  size_t count = 0;
  for (const auto& [id, connection] : connections_)
    for (int at = 0; at < 2; ++at) {
      const Connection::End& end = connection->ends[at];
      count += end.host == host && end.stream != nullptr && !connection->ends[1 - at].open;
    }
  return count;
}

// ---- SimNetwork

Result<std::unique_ptr<Listener>> SimNetwork::listen(const Address& address, Accepted accepted) {
  if (address != Wires::address_of(host_))
    return Error{ErrorCode::invalid_argument, "not an address of this host: " + address.to_string()};
  if (wires_.hosts_[host_].listener != nullptr) return Error{ErrorCode::already_exists, "the port is taken"};
  return std::unique_ptr<Listener>(new SimListener(wires_, host_, loop_, std::move(accepted)));
}

Result<std::unique_ptr<Stream>> SimNetwork::dial(const Address& address) {
  for (HostIndex to = 0; to < wires_.hosts_.size(); ++to) {
    if (address != Wires::address_of(to)) continue;
    auto connection = std::make_shared<Connection>();
    connection->id = wires_.next_connection_++;
    connection->ends[0].host = host_;
    connection->ends[0].open = true;
    connection->ends[1].host = to;
    wires_.connections_.emplace(connection->id, connection);
    auto stream = std::make_unique<SimStream>(wires_, loop_, connection, 0);
    wires_.send(connection, 0, Wires::Kind::syn);
    return std::unique_ptr<Stream>(std::move(stream));
  }
  return Error{ErrorCode::unavailable, "cannot connect to " + address.to_string(), "No route to host"};
}

}  // namespace kvferry::simulator
