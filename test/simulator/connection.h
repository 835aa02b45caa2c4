#pragma once

#include "test/simulator/sim_network.h"

namespace kvferry::simulator {

// What two kernels know of one connection.
struct Connection {
  struct End {
    HostIndex host = 0;
    SimStream* stream = nullptr;  // null: not accepted yet, or closed
    bool open = false;            // the kernel knows this end
    bool established = false;
    bool failed = false;      // the connect was refused
    bool reset_seen = false;  // by the other end, or something between
    bool fin_seen = false;
    bool fin_sent = false;
    std::string readable;  // arrived and not read
    size_t read_at = 0;    // of `readable`
    uint64_t epoch = 0;    // of what this end sends: what an earlier one sent is lost
    size_t in_flight = 0;  // bytes that this end sent and that have not arrived
    TimePoint last_arrival{};

    size_t unread() const { return readable.size() - read_at; }
  };
  uint64_t id = 0;
  bool swallowed = false;
  End ends[2];  // [0] dialled
};

// One end, as its engine holds it.
class SimStream final : public Stream, public Pollable {
 public:
  SimStream(Wires& wires, SimLoop& loop, ConnectionPtr connection, int end);
  ~SimStream() override;

  void set_handler(StreamHandler* handler) override;
  void want(bool readable, bool writable) override;
  void wake_at(size_t bytes) override;
  Result<size_t> read(std::span<const iovec> into) override;
  Result<size_t> write(std::span<const iovec> from) override;
  bool torn() const override;
  bool has_input() const override;
  void reset_on_close() override { reset_ = true; }
  std::string peer_address() const override;

  bool ready() const override;
  void dispatch() override;
  void poke();
  // The process is gone: what its objects do from here on reaches nobody.
  void detach() { connection_.reset(); }

 private:
  Connection::End& mine() const { return connection_->ends[end_]; }
  Connection::End& other() const { return connection_->ends[1 - end_]; }
  bool broken() const { return mine().failed || mine().reset_seen; }
  bool may_read() const;
  size_t room() const;
  size_t drawn(size_t most) const;
  Error gone(const char* message, const char* cause) const;

  Wires& wires_;
  SimLoop& loop_;
  ConnectionPtr connection_;  // null: detached
  const int end_;
  const uint64_t watch_;
  StreamHandler* handler_ = nullptr;
  bool want_read_ = false;
  bool want_write_ = false;
  size_t wake_at_ = 1;
  bool reset_ = false;
};

class SimListener final : public Listener, public Pollable {
 public:
  SimListener(Wires& wires, HostIndex host, SimLoop& loop, Network::Accepted accepted);
  ~SimListener() override;

  Address address() const override { return Wires::address_of(host_); }
  bool ready() const override { return !backlog_.empty(); }
  void dispatch() override;
  void add(ConnectionPtr connection);

 private:
  Wires& wires_;
  const HostIndex host_;
  SimLoop& loop_;
  const Network::Accepted accepted_;
  const uint64_t watch_;
  std::deque<ConnectionPtr> backlog_;
};

}  // namespace kvferry::simulator
