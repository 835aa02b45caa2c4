#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "engine/bench/channel.h"
#include "engine/bench/child.h"

namespace kvferry::bench {

// The initiator's hold on a target (engine/bench/target.h): one that it spawned, or one that a person started.
class Remote {
 public:
  // `plugin`: a fabric that it opens besides local and tcp, or empty.
  static Result<Remote> spawn(uint64_t pool, const std::string& plugin = {});
  static Result<Remote> connect(const std::string& control);

  Result<std::string> ask(const std::string& line) { return channel_.ask(line); }
  Status tell(const std::string& line);

  // What the target said of itself.
  pid_t pid() const { return pid_; }
  bool same_host() const { return same_host_; }
  uint64_t base() const { return base_; }
  uint64_t pool() const { return pool_; }
  uint64_t region() const { return region_; }
  const std::string& engine_address() const { return engine_address_; }
  const std::string& raw_address() const { return raw_address_; }
  // The process, where it was spawned.
  Child& child() { return *child_; }

 private:
  Status greet();

  std::optional<Child> child_;
  LineChannel channel_;
  pid_t pid_ = -1;
  bool same_host_ = false;
  uint64_t base_ = 0;
  uint64_t pool_ = 0;
  uint64_t region_ = 0;
  std::string engine_address_;
  std::string raw_address_;
};

}  // namespace kvferry::bench
