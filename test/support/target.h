#pragma once

#include <gtest/gtest.h>
#include <sys/uio.h>

#include <charconv>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "engine/types.h"
#include "test/support/free_port.h"
#include "test/support/process.h"
#include "test/support/sanitized.h"

namespace kvferry::test {

// The path of kvf-test-target in the build folder.
std::string target_program();

// A process that runs kvf-test-target (target_main.cc). Its memory is read from outside, so also when it is stopped.
class Target {
 public:
  struct Options {
    std::string id = "p0";
    std::string listen;  // empty: a free port of this host, which its successor can have, too
    std::string fabric = "tcp";
    size_t bytes = size_t{64} << 20;
    int heartbeat_ms = 200 * kSlower;
    int missed_heartbeats = 100;  // a machine that stands still for seconds ends no session
    int network_namespace = -1;
    std::map<std::string, std::string> environment;  // settings of its engine
  };

  static Target start(const Options& options) {
    ProcessOptions process;
    process.arguments = {options.id, options.listen.empty() ? free_address() : options.listen, options.fabric,
                         std::to_string(options.bytes), std::to_string(options.heartbeat_ms)};
    process.environment = options.environment;
    process.environment["KVFERRY_MISSED_HEARTBEATS"] = std::to_string(options.missed_heartbeats);
    process.network_namespace = options.network_namespace;
    auto spawned = Process::spawn(target_program(), process);
    KVF_CHECK(spawned.ok());
    Target target(std::move(*spawned), options);
    auto line = target.process_.read_line(std::chrono::seconds(60));
    if (!line.ok()) ADD_FAILURE() << line.error().to_string();
    std::istringstream words(line.ok() ? *line : "");
    std::string ready;
    words >> ready >> target.address_ >> target.region_ >> target.base_;
    if (ready != "ready") ADD_FAILURE() << "the target says: " << words.str();
    return target;
  }

  // The same options on the port that this one has, or had.
  Options successor() const {
    Options options = options_;
    options.listen = address_;
    return options;
  }

  Process& process() { return process_; }
  const std::string& address() const { return address_; }
  RegionId region() const { return region_; }
  void set_region(RegionId region) { region_ = region; }
  size_t size() const { return options_.bytes; }

  // Sends a line and returns the answer.
  std::string ask(const std::string& line) {
    send(line);
    return answer();
  }
  void send(const std::string& line) {
    if (const Status status = process_.write(line + "\n"); !status.ok()) ADD_FAILURE() << status.error().to_string();
  }
  std::string answer() {
    auto got = process_.read_line(std::chrono::seconds(60));
    return got.ok() ? *got : "no answer: " + got.error().to_string();
  }

  // Its memory now, empty when the process is gone.
  std::vector<std::byte> memory(uint64_t offset, uint64_t length) const {
    std::vector<std::byte> out(length);
    const iovec ours{out.data(), length};
    const iovec theirs{reinterpret_cast<void*>(base_ + offset), length};
    if (::process_vm_readv(process_.pid(), &ours, 1, &theirs, 1, 0) != static_cast<ssize_t>(length)) out.clear();
    return out;
  }
  std::vector<std::byte> memory() const { return memory(0, options_.bytes); }
  bool has_byte(uint64_t offset, std::byte value) const {
    const auto one = memory(offset, 1);
    return !one.empty() && one[0] == value;
  }

 private:
  Target(Process process, Options options) : process_(std::move(process)), options_(std::move(options)) {}
  Process process_;
  Options options_;
  std::string address_;
  RegionId region_ = 0;
  uint64_t base_ = 0;
};

}  // namespace kvferry::test
