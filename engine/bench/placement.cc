#include "engine/bench/placement.h"

#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

namespace kvferry::bench {
namespace {

// Every thread that the process has now; those that they start later stay with them.
void place(pid_t process, const cpu_set_t& cores) {
  std::error_code error;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/" + std::to_string(process) + "/task", error))
    ::sched_setaffinity(std::stoi(thread.path().filename()), sizeof(cores), &cores);
}

cpu_set_t only(size_t core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  return cores;
}

}  // namespace

Apart::Apart(pid_t other) : other_(other) {
  if (::sched_getaffinity(0, sizeof(before_), &before_) != 0 || CPU_COUNT(&before_) < 2) return;
  std::vector<size_t> cores;
  for (size_t core = 0; cores.size() < 2; ++core)
    if (CPU_ISSET(core, &before_)) cores.push_back(core);
  place(::getpid(), only(cores[0]));
  place(other_, only(cores[1]));
  placed_ = true;
}

Apart::~Apart() {
  if (!placed_) return;
  place(::getpid(), before_);
  place(other_, before_);
}

}  // namespace kvferry::bench
