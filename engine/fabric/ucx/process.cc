#include "engine/fabric/ucx/process.h"

#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <utility>

namespace kvferry::ucx {
namespace {

thread_local std::string complaint;

// Warnings and errors become part of our own errors. What is louder by the user's own wish goes its way.
ucs_log_func_rc_t on_line(const char*, unsigned, const char*, ucs_log_level_t level, const ucs_log_component_config_t*,
                          const char* format, va_list arguments) {
  if (level > UCS_LOG_LEVEL_WARN) return UCS_LOG_FUNC_RC_CONTINUE;
  char line[256];
  std::vsnprintf(line, sizeof line, format, arguments);
  complaint = line;
  return UCS_LOG_FUNC_RC_STOP;
}

}  // namespace

void tame_process() {
  static std::once_flag once;
  std::call_once(once, [] {
    ucs_log_push_handler(on_line);
    for (const int signal : {SIGILL, SIGBUS, SIGFPE, SIGSEGV}) ucs_debug_disable_signal(signal);
  });
}

std::string take_complaint() {
  return std::exchange(complaint, {});
}

}  // namespace kvferry::ucx
