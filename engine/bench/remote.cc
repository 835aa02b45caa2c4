#include "engine/bench/remote.h"

#include <sstream>

#include "engine/fabric/local/host.h"

namespace kvferry::bench {

Result<Remote> Remote::spawn(uint64_t pool, const std::string& plugin) {
  std::vector<std::string> arguments = {"--target", "127.0.0.1:0", "--once", "--pool", std::to_string(pool)};
  if (!plugin.empty()) arguments.insert(arguments.end(), {"--fabric", plugin});
  KVF_ASSIGN_OR_RETURN(Child child, Child::spawn(std::move(arguments)));
  KVF_ASSIGN_OR_RETURN(const std::string line, child.read_line());
  const std::string word = "control ";
  if (!line.starts_with(word)) return Error{ErrorCode::protocol, "the target said: " + line};
  KVF_ASSIGN_OR_RETURN(Remote remote, connect(line.substr(word.size())));
  remote.child_ = std::move(child);
  return remote;
}

Result<Remote> Remote::connect(const std::string& control) {
  Remote remote;
  KVF_ASSIGN_OR_RETURN(UniqueFd fd, dial(control));
  remote.channel_ = LineChannel(std::move(fd));
  KVF_RETURN_IF_ERROR(remote.greet());
  return remote;
}

Status Remote::greet() {
  KVF_ASSIGN_OR_RETURN(const std::string hello, channel_.ask("hello"));
  std::istringstream words(hello);
  HostIdentity host;
  words >> pid_ >> host.boot_id >> host.pid_namespace >> base_ >> pool_ >> region_ >> engine_address_ >> raw_address_;
  if (!words) return Error{ErrorCode::protocol, "the target said: " + hello};
  same_host_ = host.same_host(this_host());
  return {};
}

Status Remote::tell(const std::string& line) {
  KVF_ASSIGN_OR_RETURN([[maybe_unused]] const std::string answer, channel_.ask(line));
  return {};
}

}  // namespace kvferry::bench
