// Usage: kvf-link SEED LEFT-ADDRESS RIGHT-ADDRESS MTU
//
// Two network namespaces and the link between them: IP packets are relayed between one tun device in each, with the
// loss, delay, rate and cuts that lines on stdin ask for (Relay::command). This kernel may lack netem, and a seed makes
// a run repeatable. Prints "ready PID LEFT RIGHT" with its descriptors of both namespaces, which others open under
// /proc/PID/fd, then "ok ..." or "error ..." to each line. Ends, and with it the link, when stdin ends.
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>
#include <utility>

#include "common/clock.h"
#include "common/config.h"
#include "test/support/link/relay.h"
#include "test/support/link/tun.h"

namespace kvferry::test {
namespace {

// How many packets of one side are taken before the other side and the clock are looked at.
constexpr int kBurst = 64;

class Program {
 public:
  Program(uint64_t seed, TunNamespace left, TunNamespace right)
      : relay_(seed), ends_{std::move(left), std::move(right)} {}

  int run() {
    say("ready " + std::to_string(::getpid()) + " " + std::to_string(ends_[0].network_namespace.get()) + " " +
        std::to_string(ends_[1].network_namespace.get()));
    while (!ended_) {
      wait();
      for (size_t side = 0; side < ends_.size(); ++side) take_packets(side);
      for (size_t side = 0; side < ends_.size(); ++side) deliver_due(side, clock_.now());
    }
    return 0;
  }

 private:
  static void say(const std::string& line) {
    std::puts(line.c_str());
    std::fflush(stdout);
  }

  // Until a packet, a command, or the time of a packet that waits.
  void wait() {
    std::array<pollfd, 3> events{pollfd{STDIN_FILENO, POLLIN, 0}, pollfd{ends_[0].tun.get(), POLLIN, 0},
                                 pollfd{ends_[1].tun.get(), POLLIN, 0}};
    const TimePoint due = std::min(relay_.from(0).next_due(), relay_.from(1).next_due());
    timespec limit{};
    if (due != kNever) {
      const Duration left = std::max(Duration(0), due - clock_.now());
      limit.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(left).count();
      limit.tv_nsec = (left % std::chrono::seconds(1)).count();
    }
    if (::ppoll(events.data(), events.size(), due == kNever ? nullptr : &limit, nullptr) > 0 && events[0].revents != 0)
      read_commands();
  }

  void read_commands() {
    char buffer[4096];
    const ssize_t taken = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (taken < 0 && errno == EINTR) return;
    if (taken <= 0) {
      ended_ = true;
      return;
    }
    input_.append(buffer, static_cast<size_t>(taken));
    for (size_t end = 0; (end = input_.find('\n')) != std::string::npos; input_.erase(0, end + 1)) {
      const auto answer = relay_.command(std::string_view(input_).substr(0, end));
      say(answer ? "ok " + *answer : "error " + answer.error().to_string());
    }
  }

  void take_packets(size_t side) {
    for (int i = 0; i < kBurst; ++i) {
      char packet[65536];
      const ssize_t size = ::read(ends_[side].tun.get(), packet, sizeof packet);
      if (size <= 0) return;
      // The kernel's own IPv6 chatter would use up random numbers at random times.
      const bool is_ipv4 = (static_cast<unsigned char>(packet[0]) >> 4) == 4;
      // By the clock behind its arrival: an earlier time, taken for all of them, would cut its delay short.
      if (is_ipv4) relay_.from(side).offer(std::string(packet, static_cast<size_t>(size)), clock_.now());
    }
  }

  void deliver_due(size_t side, TimePoint now) {
    while (auto packet = relay_.from(side).take(now)) {
      // A full device drops the packet, as a network does.
      [[maybe_unused]] const ssize_t written = ::write(ends_[1 - side].tun.get(), packet->data(), packet->size());
    }
  }

  const SystemClock clock_;
  Relay relay_;
  std::array<TunNamespace, 2> ends_;
  std::string input_;
  bool ended_ = false;
};

Result<int> run(const Environment& words) {
  KVF_ASSIGN_OR_RETURN(const int64_t seed, words.integer("SEED", 0, 0, INT64_MAX));
  KVF_ASSIGN_OR_RETURN(const int64_t mtu, words.integer("MTU", 1500, 576, 65000));
  KVF_ASSIGN_OR_RETURN(auto left, enter_new_tun_namespace(*words.get("LEFT-ADDRESS"), static_cast<int>(mtu)));
  KVF_ASSIGN_OR_RETURN(auto right, enter_new_tun_namespace(*words.get("RIGHT-ADDRESS"), static_cast<int>(mtu)));
  return Program(static_cast<uint64_t>(seed), std::move(left), std::move(right)).run();
}

}  // namespace
}  // namespace kvferry::test

int main(int count, char** words) {
  if (count != 5) {
    std::fputs("usage: kvf-link SEED LEFT-ADDRESS RIGHT-ADDRESS MTU\n", stderr);
    return 2;
  }
  const auto status = kvferry::test::run(kvferry::Environment(std::map<std::string, std::string>{
      {"SEED", words[1]}, {"LEFT-ADDRESS", words[2]}, {"RIGHT-ADDRESS", words[3]}, {"MTU", words[4]}}));
  if (status) return *status;
  std::fprintf(stderr, "kvf-link: %s\n", status.error().to_string().c_str());
  return 1;
}
