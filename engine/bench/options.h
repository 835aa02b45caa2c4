#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/bench/cases.h"
#include "engine/bench/runner.h"
#include "engine/bench/target.h"

namespace kvferry::bench {

// What the command line asks for.
struct Options {
  enum class Role { initiator, target, crowd, reader, doctor };
  Role role = Role::initiator;

  TargetOptions target;  // of the role target; its pool also of a target that is spawned
  std::string connect;   // control address of a target that runs already; empty: spawns one
  std::vector<Case> cases;
  std::vector<std::string> controls;
  RunnerOptions runner;
  AuthMode auth = AuthMode::open;  // with keys made for it
  bool check = false;
  std::string json;  // path, or "-"

  std::string scripted_peer_of;   // roles crowd and reader: the engine's address
  size_t sessions = 1000;         // of a crowd
  double bytes_per_second = 1e6;  // of a reader
};

// Nothing, with the exit status, when the program is to end at once (help, or a wrong command line).
std::optional<Options> parse_options(int argc, char** argv, int& status);

}  // namespace kvferry::bench
