#include "test/support/link/link.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <thread>
#include <utility>

#include "common/check.h"

namespace kvferry::test {
namespace {

constexpr Duration kAnswerLimit = std::chrono::seconds(60);

Result<UniqueFd> open_descriptor_of(pid_t pid, int fd) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  UniqueFd opened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened) return errno_error("cannot open " + path);
  return opened;
}

}  // namespace

std::string Link::why_not() {
  if (::geteuid() != 0) return "network namespaces need root";
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) return "there is no /dev/net/tun";
  return {};
}

Result<Link> Link::create(const LinkOptions& options) {
  ProcessOptions process;
  process.arguments = {std::to_string(options.seed), address(Side::left), address(Side::right),
                       std::to_string(options.mtu)};
  process.merge_stderr = true;
  KVF_ASSIGN_OR_RETURN(Process relay, Process::spawn(KVF_LINK_PROGRAM, process));
  KVF_ASSIGN_OR_RETURN(const std::string line, relay.read_line(kAnswerLimit));
  int pid = 0;
  int left = 0;
  int right = 0;
  if (std::sscanf(line.c_str(), "ready %d %d %d", &pid, &left, &right) != 3)
    return Error{ErrorCode::unavailable, "the link did not start", line, {}, {}};
  KVF_ASSIGN_OR_RETURN(UniqueFd left_namespace, open_descriptor_of(pid, left));
  KVF_ASSIGN_OR_RETURN(UniqueFd right_namespace, open_descriptor_of(pid, right));
  return Link(std::move(relay), std::move(left_namespace), std::move(right_namespace));
}

Link::Link(Process relay, UniqueFd left, UniqueFd right)
    : relay_(std::move(relay)), namespaces_{std::move(left), std::move(right)} {}

void Link::run_in(Side side, const std::function<void()>& work) const {
  std::thread([&] {
    KVF_CHECK(::setns(network_namespace(side), CLONE_NEWNET) == 0);
    work();
  }).join();
}

Result<std::string> Link::command(const std::string& line) {
  KVF_RETURN_IF_ERROR(relay_.write(line + "\n"));
  KVF_ASSIGN_OR_RETURN(const std::string answer, relay_.read_line(kAnswerLimit));
  if (!answer.starts_with("ok ")) return Error{ErrorCode::invalid_argument, "the link refused", answer, {}, {}};
  return answer.substr(3);
}

Result<LinkStats> Link::stats() {
  KVF_ASSIGN_OR_RETURN(const std::string text, command("stats"));
  LinkStats stats;
  if (std::sscanf(text.c_str(),
                  "forwarded=%" SCNu64 " lost=%" SCNu64 " duplicated=%" SCNu64 " cut=%" SCNu64 " overflowed=%" SCNu64,
                  &stats.forwarded, &stats.lost, &stats.duplicated, &stats.cut, &stats.overflowed) != 5)
    return Error{ErrorCode::protocol, "the link's figures cannot be read", text, {}, {}};
  return stats;
}

}  // namespace kvferry::test
