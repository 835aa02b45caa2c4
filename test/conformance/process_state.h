#pragma once

#include <dlfcn.h>

#include <csignal>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/config.h"

namespace kvferry::test {

// The first bytes of calls that libraries like to hook, who handles crashes, and the environment that children get.
struct ProcessState {
  ProcessState() {
    for (const char* call : {"mmap", "munmap", "brk", "madvise", "shmat"}) {
      const auto* code = static_cast<const unsigned char*>(::dlsym(RTLD_DEFAULT, call));
      calls[call].assign(code, code + 16);
    }
    struct sigaction handler {};
    ::sigaction(SIGSEGV, nullptr, &handler);
    on_segv = handler.sa_handler;
  }
  std::map<std::string, std::vector<unsigned char>> calls;
  void (*on_segv)(int) = nullptr;
  std::vector<std::pair<std::string, std::string>> environment = Environment::of_process().with_prefix("");
};
// Before any library was loaded: some take signals when they are, not only when they are opened.
inline const ProcessState kAtStart;

}  // namespace kvferry::test
