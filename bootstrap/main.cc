#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "bootstrap/config.h"
#include "bootstrap/server.h"

namespace {

using kvferry::Environment;

// A secret given as a flag would stay visible in the process list.
void wipe_token(int count, char** words) {
  constexpr std::string_view kFlag = "--token";
  for (int i = 1; i < count; ++i) {
    const std::string_view word = words[i];
    if (word == kFlag && i + 1 < count) std::memset(words[i + 1], '*', std::strlen(words[i + 1]));
    if (word.starts_with(kFlag) && word.size() > kFlag.size() && word[kFlag.size()] == '=') {
      std::memset(words[i] + kFlag.size() + 1, '*', word.size() - kFlag.size() - 1);
    }
  }
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// Blocked in every thread that starts later, so that only sigwait() sees them.
sigset_t block_ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

bool loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

int fail(const kvferry::Error& error) {
  std::fprintf(stderr, "kvferry-bootstrap: %s\n", error.to_string().c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  wipe_token(argc, argv);
  auto parsed = kvferry::bootstrap::parse_config(arguments, Environment::of_process());
  if (!parsed.ok()) return fail(parsed.error());
  if (!parsed->help.empty()) {
    std::fputs(parsed->help.c_str(), stdout);
    return 0;
  }
  raise_descriptor_limit();
  const sigset_t ending = block_ending_signals();
  auto& config = parsed->config;
  const auto log = kvferry::make_stderr_logger(config.log_level, "bootstrap");
  config.server.logger = log;
  log->info("{}", config.to_string());
  if (config.server.token.empty() && !loopback(config.server.host)) {
    log->warning("anyone who reaches {} may register workers and release parcels: set --token", config.server.host);
  }
  auto server = kvferry::bootstrap::Server::create(config.server);
  if (!server.ok()) return fail(server.error());
  log->info("listening on {}:{}", config.server.host, (*server)->port());
  int signal = 0;
  ::sigwait(&ending, &signal);
  log->info("ending");
  return 0;
}
