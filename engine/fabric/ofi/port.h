#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/fabric/ofi/graves.h"
#include "engine/fabric/ofi/handle.h"
#include "engine/fabric/ofi/name.h"

struct kvf_fabric;

namespace kvferry::ofi {

// One operation, as the provider is given it. Whoever posts it owns it, until its end is told or its port is closed.
struct Request {
  enum class Kind : uint8_t { read, write, send, receive };

  fi_context2 room{};  // first: the provider's own, and what it calls the operation by
  Kind kind = Kind::read;
  fi_addr_t peer = FI_ADDR_UNSPEC;
  void* local = nullptr;
  size_t length = 0;
  void* descriptor = nullptr;  // of local memory, where the provider wants one
  uint64_t remote = 0;
  uint64_t key = 0;
};

// An endpoint with a queue and addresses of its own. (Of a queue that several endpoints share, libfabric 1.17 goes on
// looking into those that were closed.)
class Port {
 public:
  // Who has posted. Must not close the port in these calls.
  class User {
   public:
    virtual ~User() = default;
    virtual void ended(Request& request, int32_t result, const std::string& why) = 0;
    // Something went wrong that is no operation's.
    virtual void broke(const std::string& why) = 0;
  };

  // Null: `why` says so.
  static std::unique_ptr<Port> open(kvf_fabric& fabric, User& user, kvf_text why);
  ~Port() { close(); }
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;

  // How others reach it.
  Name name() const;
  // To be asked before an endpoint of this process looks into it, as those of shared memory do (graves.h).
  bool may_have_peers_here();
  // FI_ADDR_UNSPEC: the provider does not take the name.
  fi_addr_t add(const Name& peer);
  // Ends the connection with that peer. REQUIRES: something was sent there.
  void remove(fi_addr_t peer);

  // 0, or libfabric's error; -FI_EAGAIN: nothing was begun, neither now nor, where there is no connection, ever.
  ssize_t post(Request& request);
  // Asks the provider to end it, if that can. An end that comes of it is told as any error is: nothing says for sure
  // whether that came from here or from a connection that broke.
  void cancel(Request& request);
  // Tells the ends of what was posted; how many.
  uint32_t read_queue();
  // The descriptor, where there is one, is readable when there is something to do, after may_sleep() has said yes.
  int descriptor() const { return descriptor_; }
  bool may_sleep();
  // Ends all that was posted, told or not. False: that is not sure, and the endpoint is left to libfabric.
  bool close();

 private:
  Port(kvf_fabric& fabric, User& user) : fabric_(fabric), user_(user) {}
  int32_t start(kvf_text why);
  int make_endpoint();
  bool tell_error();

  kvf_fabric& fabric_;
  User& user_;
  Handle<fid_av> addresses_;
  Handle<fid_cq> queue_;
  Handle<fid_ep> endpoint_;
  int descriptor_ = -1;
  bool counted_ = false;         // among those that share memory
  bool shares_process_ = false;  // with one of its peers
};

}  // namespace kvferry::ofi
