#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/io/stream.h"
#include "test/simulator/history.h"
#include "test/simulator/sim_loop.h"

namespace kvferry::simulator {

class SimStream;
class SimListener;
struct Connection;
using ConnectionPtr = std::shared_ptr<Connection>;
using HostIndex = size_t;

// The wires between hosts and the kernels at their ends. One engine runs on each host, always at the same address.
//
// What TCP does and what it does not: bytes are kept in order and never lost while both ends live; a partition delays
// them (retransmission) and loses resets for good; a reset leaves readable what had arrived; a process that dies closes
// its connections, a host that dies says nothing; an end that nothing was said to learns by keepalive that the other is
// gone; a kernel completes connections and fills sockets for a stopped process.
class Wires {
 public:
  struct Options {
    Duration least_delay = std::chrono::microseconds(20);
    Duration jitter = std::chrono::microseconds(200);
    size_t buffer_bytes = 65536;  // written and not read, one way of one connection
    unsigned partial = 30;        // per cent of reads and writes that move less than they could
  };

  Wires(Timeline& timeline, Random& random, History& history, size_t hosts, Options options);
  ~Wires();

  static Address address_of(HostIndex host);

  // ---- faults
  // What is sent from `from` to `to` waits until unblock() (or for ever, when it is a reset).
  void block(HostIndex from, HostIndex to);
  void unblock(HostIndex from, HostIndex to);
  // Later bytes from `from` to `to` take `per_byte` each; zero: none.
  void throttle(HostIndex from, HostIndex to, Duration per_byte) { link(from, to).per_byte = per_byte; }
  void set_up(HostIndex host, bool up);
  // Ends every connection of a host whose process is gone: by its kernel, or (power cut) silently.
  void drop_host(HostIndex host, bool silently);
  // Something between the ends resets one drawn connection (`one_side`: for one end only) or makes it swallow
  // everything from now on. False: there is none.
  bool reset_any(bool one_side);
  bool swallow_any();

  // Whether no fault of the wires touched this pair of hosts since `when`, so that resets must have arrived after
  // longest_delay().
  bool calm_since(HostIndex a, HostIndex b, TimePoint when) const;
  Duration longest_delay() const { return options_.least_delay + options_.jitter; }

  // Open ends on a host.
  size_t streams_of(HostIndex host) const;
  // Those of them whose other end is gone.
  size_t lone_streams_of(HostIndex host) const;

 private:
  friend class SimStream;
  friend class SimListener;
  friend class SimNetwork;
  enum class Kind : uint8_t { syn, syn_ack, refused, data, fin, reset };
  struct Packet {
    ConnectionPtr connection;
    int to;  // end
    Kind kind;
    std::string bytes;
    uint64_t epoch;
  };
  struct Link {
    bool blocked = false;
    Duration per_byte{0};
    TimePoint disturbed{};  // last
    std::deque<Packet> held;
  };

  Link& link(HostIndex from, HostIndex to) { return links_[from * hosts_.size() + to]; }
  const Link& link(HostIndex from, HostIndex to) const { return links_[from * hosts_.size() + to]; }
  void send(const ConnectionPtr& connection, int from, Kind kind, std::string bytes = {});
  void arrive(Packet packet);
  void deliver(const Packet& packet);
  void connect(const Packet& packet);
  void poke(const Connection& connection, int end);
  void close_end(const ConnectionPtr& connection, int end, bool reset);
  void forget_end(const ConnectionPtr& connection, int end);
  void disturb(HostIndex from, HostIndex to);
  ConnectionPtr draw_connection();
  // `only`: one end, or -1 for both.
  void reset_ends(Connection& connection, int only);

  struct Host {
    bool up = true;
    SimListener* listener = nullptr;
  };
  Timeline& timeline_;
  Random& random_;
  History& history_;
  const Options options_;
  std::vector<Host> hosts_;
  std::vector<Link> links_;
  std::map<uint64_t, ConnectionPtr> connections_;  // those with an open end
  uint64_t next_connection_ = 1;
};

// One host's network as the engine there sees it. Dies with the engine's process; its streams must be gone by then.
class SimNetwork final : public Network {
 public:
  SimNetwork(Wires& wires, HostIndex host, SimLoop& loop) : wires_(wires), host_(host), loop_(loop) {}

  Result<std::unique_ptr<Listener>> listen(const Address& address, Accepted accepted) override;
  Result<std::unique_ptr<Stream>> dial(const Address& address) override;

 private:
  Wires& wires_;
  const HostIndex host_;
  SimLoop& loop_;
};

}  // namespace kvferry::simulator
