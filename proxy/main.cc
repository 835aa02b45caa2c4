#include <sys/random.h>
#include <sys/resource.h>

#include <array>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/check.h"
#include "proxy/proxy.h"

namespace {

using kvferry::Environment;

// getrandom(2), 512 numbers at a time: each request takes four. For one thread, and no fork.
class BufferedRandom final : public kvferry::Random {
 public:
  uint64_t next() override {
    if (used_ == numbers_.size()) {
      KVF_CHECK(::getrandom(numbers_.data(), sizeof numbers_, 0) == static_cast<ssize_t>(sizeof numbers_));
      used_ = 0;
    }
    return std::exchange(numbers_[used_++], 0);
  }

 private:
  std::array<uint64_t, 512> numbers_{};
  size_t used_ = numbers_.size();
};

// Secrets given as flags would stay visible in the process list.
void wipe_secrets(int count, char** words) {
  for (int i = 1; i < count; ++i) {
    const std::string_view word = words[i];
    for (const std::string_view flag : {"--api-key", "--bootstrap-token", "--require-key", "--admin-key"}) {
      if (word == flag && i + 1 < count) std::memset(words[i + 1], '*', std::strlen(words[i + 1]));
      if (word.starts_with(flag) && word.size() > flag.size() && word[flag.size()] == '=') {
        std::memset(words[i] + flag.size() + 1, '*', word.size() - flag.size() - 1);
      }
    }
  }
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

int fail(const kvferry::Error& error) {
  std::fprintf(stderr, "kvferry-proxy: %s\n", error.to_string().c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  wipe_secrets(argc, argv);
  auto parsed = kvferry::proxy::parse_config(arguments, Environment::of_process());
  if (!parsed.ok()) return fail(parsed.error());
  if (!parsed->help.empty()) {
    std::fputs(parsed->help.c_str(), stdout);
    return 0;
  }
  raise_descriptor_limit();
  const auto log = kvferry::make_stderr_logger(parsed->config.log_level, "proxy");
  boost::asio::io_context loop(1);
  const kvferry::SystemClock clock;
  BufferedRandom random;
  kvferry::http::Deadlines deadlines(loop, clock);
  const auto config = parsed->config;
  auto proxy = kvferry::proxy::Proxy::create(loop, deadlines, random, log, config);
  if (!proxy.ok()) return fail(proxy.error());
  log->info("listening on {}:{}, {} prefillers, {} decoders, connector {}, policy {}", config.host, (*proxy)->port(),
            config.prefill.size(), config.decode.size(), to_string(config.dialect), to_string(config.policy));
  boost::asio::signal_set signals(loop, SIGTERM, SIGINT);
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    log->info("draining");
    (*proxy)->drain([&] { loop.stop(); });
    signals.async_wait([&](const boost::system::error_code& again, int) {
      if (!again) loop.stop();
    });
  });
  loop.run();
  return 0;
}
