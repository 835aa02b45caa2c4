#include "bootstrap/ports.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

namespace kvferry::bootstrap {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kListening = "0A";
constexpr size_t kMaxCommand = 200;

// Adds the inodes of the sockets that listen on `port`, of one table of procfs:
//   sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
void add_listeners(const std::string& table, uint16_t port, std::set<std::string>& inodes) {
  std::ifstream file(table);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
    if (!(words >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode)) {
      continue;
    }
    const size_t colon = local.rfind(':');
    if (state != kListening || colon == std::string::npos) continue;
    uint32_t found = 0;
    const char* end = local.data() + local.size();
    if (std::from_chars(local.data() + colon + 1, end, found, 16).ptr == end && found == port) inodes.insert(inode);
  }
}

bool holds(const fs::path& process, const std::set<std::string>& inodes) {
  std::error_code error;
  for (fs::directory_iterator fd(process / "fd", error), end; !error && fd != end; fd.increment(error)) {
    std::error_code unreadable;
    const std::string target = fs::read_symlink(fd->path(), unreadable).string();
    if (unreadable || !target.starts_with("socket:[")) continue;
    if (inodes.contains(target.substr(8, target.size() - 9))) return true;
  }
  return false;
}

std::string command_of(const fs::path& process) {
  std::ifstream file(process / "cmdline", std::ios::binary);
  std::string text(kMaxCommand, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return text;
}

}  // namespace

Result<uint16_t> port_of_worker(uint16_t base, uint32_t dp_rank, uint32_t tp_size, uint32_t tp_rank) {
  const uint64_t port = base + uint64_t{dp_rank} * tp_size + tp_rank;
  if (tp_rank >= tp_size) {
    return Error{ErrorCode::invalid_argument, "the tensor-parallel rank must be below its size", "", "", "bootstrap"};
  }
  if (base == 0 || port > 65535) {
    return Error{ErrorCode::invalid_argument, "no port left for this worker",
                 "base " + std::to_string(base) + " and its rank give " + std::to_string(port), "", "bootstrap"};
  }
  return static_cast<uint16_t>(port);
}

std::string port_holder(uint16_t port, const std::string& proc) {
  std::set<std::string> inodes;
  add_listeners(proc + "/net/tcp", port, inodes);
  add_listeners(proc + "/net/tcp6", port, inodes);
  if (inodes.empty()) return "nobody listens on it";
  std::error_code error;
  for (fs::directory_iterator process(proc, error), end; !error && process != end; process.increment(error)) {
    const std::string pid = process->path().filename().string();
    if (!std::all_of(pid.begin(), pid.end(), [](char c) { return c >= '0' && c <= '9'; })) continue;
    if (holds(process->path(), inodes)) return "held by pid " + pid + " (" + command_of(process->path()) + ")";
  }
  return "held by a process that this user or namespace cannot see";
}

}  // namespace kvferry::bootstrap
