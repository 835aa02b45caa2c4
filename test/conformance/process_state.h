#pragma once

#include <dlfcn.h>

#include <csignal>
#include <map>
#include <string>
#include <vector>

namespace kvferry::test {

// The first bytes of calls that libraries like to hook, and who handles crashes.
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
};
// Before any library was loaded: some take signals when they are, not only when they are opened.
inline const ProcessState kAtStart;

}  // namespace kvferry::test
