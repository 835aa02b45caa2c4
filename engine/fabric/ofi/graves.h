#pragma once

#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>

#include <memory>

#include "engine/fabric/ofi/handle.h"

namespace kvferry::ofi {

// A device that was opened; endpoints of it need it until they are closed.
struct Opened {
  Handle<fid_fabric> fabric;
  Handle<fid_domain> domain;
};

// What is left of a port when nobody asks anything of it any more.
struct Remains {
  std::shared_ptr<Opened> opened;
  Handle<fid_av> addresses;
  Handle<fid_cq> queue;
  Handle<fid_ep> endpoint;
};

// Shared memory between endpoints of one process is not mapped twice: libfabric gives the one a pointer to the other's,
// and does not ask whether that is still there. So those that have a peer in their own process are closed when the
// process has none left that lives. Until then nothing moves by them: it is progress() that moves bytes, and nobody
// calls it. Any thread.
class Graves {
 public:
  static constexpr size_t kMost = 256;  // I6: 9 MB of shared memory each
  static void one_more();
  // Empty: nothing of it has to be kept.
  static void one_less(Remains remains);
  // A place for one that lives. False: there are kMost, and none is free before none lives.
  static bool reserve();
  static constexpr const char* kFull = ": too many endpoints of this process have had others of it as peers";
};

}  // namespace kvferry::ofi
