#pragma once

#include <fcntl.h>
#include <sched.h>

#include <optional>
#include <string>
#include <utility>

#include "common/fd.h"
#include "test/support/link/link.h"
#include "test/system/faults.h"

namespace kvferry::test {

// The calling thread, what it starts and the sockets it opens are in one network namespace of a link for the life of
// this object.
class Inside {
 public:
  Inside(const Link& link, Side side) : before_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
    KVF_CHECK(before_ && ::setns(link.network_namespace(side), CLONE_NEWNET) == 0);
  }
  ~Inside() { KVF_CHECK(::setns(before_.get(), CLONE_NEWNET) == 0); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  UniqueFd before_;
};

// A test whose thread is on the right side of a link; what it talks to is on the left. Skipped where there are no
// links.
template <class Base>
class OnALink : public Base {
 protected:
  void SetUp() override {
    if (const std::string reason = Link::why_not(); !reason.empty()) GTEST_SKIP() << reason;
    link_.emplace(must(Link::create({.seed = 11})));
    inside_.emplace(*link_, Side::right);
  }

  void shape(const std::string& command) {
    const auto done = link_->command(command);
    EXPECT_TRUE(done.ok()) << command;
  }
  LinkStats stats() { return must(link_->stats()); }
  // Nothing is on its way, and nothing hinders what comes.
  void heal() {
    for (const char* command : {"cut", "rate 0", "delay 0ms", "loss 0", "duplicate 0", "heal"}) shape(command);
  }
  Target start_target(size_t bytes, int heartbeat_ms, int missed_heartbeats = kPatient) {
    Target::Options options;
    options.listen = Link::address(Side::left) + ":7100";
    options.bytes = bytes;
    options.heartbeat_ms = heartbeat_ms;
    options.missed_heartbeats = missed_heartbeats;
    options.network_namespace = link_->network_namespace(Side::left);
    return Target::start(options);
  }

  std::optional<Link> link_;
  std::optional<Inside> inside_;
};

}  // namespace kvferry::test
