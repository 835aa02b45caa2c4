#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>

#include "common/clock.h"
#include "common/fd.h"
#include "common/result.h"
#include "test/support/process.h"

namespace kvferry::test {

enum class Side { left = 0, right = 1 };

struct LinkOptions {
  uint64_t seed = 1;
  int mtu = 1500;
};

struct LinkStats {
  uint64_t forwarded = 0;
  uint64_t lost = 0;
  uint64_t duplicated = 0;
  uint64_t cut = 0;
  uint64_t overflowed = 0;
};

// Two network namespaces, each with an address of its own, and a seeded, shaped link between them, for tests. The
// namespaces have no names: they are gone with this object and the processes and sockets in them, also when the test
// is killed. Not thread-safe.
//
//   auto link = Link::create({.seed = 7});
//   auto target = Process::spawn(program, {.arguments = {...}, .network_namespace =
//   link->network_namespace(Side::left)}); link->command("loss 0.01");
class Link {
 public:
  // Empty where links can be made; else why not (not root, no /dev/net/tun), for GTEST_SKIP.
  static std::string why_not();
  static Result<Link> create(const LinkOptions& options = {});

  static std::string address(Side side) { return side == Side::left ? "10.77.0.1" : "10.77.0.2"; }
  // For ProcessOptions; owned by this object.
  int network_namespace(Side side) const { return namespaces_[static_cast<size_t>(side)].get(); }
  // Runs `work` in a thread of its own that is in the namespace: the sockets that it opens and the threads that it
  // starts stay there. Returns when it has returned.
  void run_in(Side side, const std::function<void()>& work) const;

  // `loss 0.01`, `delay 5ms`, `rate 1M` (bytes a second), `duplicate 0.1`, `cut`, `heal`; a last word `left` or `right`
  // limits it to what that side sends. In force when this returns. Returns the answer (relay.h).
  Result<std::string> command(const std::string& line);
  Result<LinkStats> stats();

 private:
  Link(Process relay, UniqueFd left, UniqueFd right);

  Process relay_;
  std::array<UniqueFd, 2> namespaces_;
};

}  // namespace kvferry::test
