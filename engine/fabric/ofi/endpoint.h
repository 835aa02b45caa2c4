#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <set>
#include <span>
#include <string>

#include "engine/fabric/ofi/letter.h"

// A connection that this side dialled, as plugin_abi.h states it.
//
//   from      event                                to
//   dialling  the hello could be posted            asking
//   asking    a welcome                            thanking
//   thanking  the thanks have arrived              standing
//   any       an error, a refusal, a connection that is gone   lost
struct kvf_endpoint final : private kvferry::ofi::Port::User, private kvferry::ofi::Tended {
 public:
  static int32_t connect(kvf_fabric& fabric, const char* address, uint64_t token, kvf_endpoint** out, kvf_text why);
  // Ends everything in flight. KVF_OK: it is gone, and to be deleted.
  int32_t disconnect();

  int32_t begin(kvferry::ofi::Request::Kind kind, void* local, const kvf_memory* memory, uint64_t remote,
                const kvf_key& key, size_t length, uint64_t operation, kvf_text why);
  int32_t flush(uint64_t operation, kvf_text why);
  int32_t cancel(std::span<const uint64_t> operations);

 private:
  using Request = kvferry::ofi::Request;
  enum class State { dialling, asking, thanking, standing, lost };
  // A get or put that has not ended.
  struct Transfer : Request {
    uint64_t operation = 0;
    uint64_t put = 0;                  // its number among the puts; 0: a get
    kvferry::ofi::Handle<fid_mr> own;  // of local memory that came unregistered
    std::list<Transfer>::iterator self;
  };
  struct Flush {
    uint64_t operation;
    uint64_t last_put;  // that must have ended
  };

  kvf_endpoint(kvf_fabric& fabric, uint64_t token) : fabric_(fabric), token_(token) {}
  int32_t start(const char* address, kvf_text why);
  void ended(Request& request, int32_t result, const std::string& why) override;
  void broke(const std::string& why) override { lose(why); }
  bool tend() override;
  bool send(kvferry::ofi::Mailbox& box);
  void on_answer();
  void on_thanked(int32_t result, const std::string& why);
  void lose(const std::string& why);
  void drain_backlog();
  void tell(Transfer& transfer, int32_t result, const std::string& why);
  bool arrived(uint64_t last_put) const { return puts_.empty() || *puts_.begin() > last_put; }
  void tell_flushes();

  kvf_fabric& fabric_;
  const uint64_t token_;
  State state_ = State::dialling;
  std::string why_lost_;
  kvferry::ofi::Name door_name_;
  fi_addr_t door_ = FI_ADDR_UNSPEC;
  fi_addr_t peer_ = FI_ADDR_UNSPEC;
  kvferry::ofi::Mailbox hello_;
  kvferry::ofi::Mailbox answer_;
  kvferry::ofi::Mailbox thanks_;
  bool thanked_ = false;

  std::list<Transfer> transfers_;  // posted, or in the backlog; bounded by the engine's window
  std::list<Transfer> spare_;
  std::deque<Transfer*> backlog_;  // those that the provider did not take yet
  bool stuck_ = false;             // it took none although it has none
  std::set<uint64_t> puts_;        // numbers of those in `transfers_`
  uint64_t last_put_ = 0;
  std::deque<Flush> flushes_;
  std::unique_ptr<kvferry::ofi::Port> port_;  // last: closed before what it uses
};
