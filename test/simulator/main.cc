#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <charconv>
#include <csignal>

#include "common/clock.h"
#include "test/simulator/scenarios.h"

// kvferry-simulate: runs seeds, and tells the history of the first that fails.

namespace kvferry::simulator {
namespace {

std::atomic<uint64_t> current_seed{0};  // for the handler below alone

// A broken invariant of the engine (KVF_CHECK) or a wild access ends the process: it must still name the seed.
void name_seed_and_die(int signal) {
  char text[64] = "crashed in seed ";
  size_t length = std::char_traits<char>::length(text);
  char digits[24];
  size_t count = 0;
  for (uint64_t rest = current_seed.load(); count == 0 || rest > 0; rest /= 10)
    digits[count++] = static_cast<char>('0' + rest % 10);
  while (count > 0) text[length++] = digits[--count];
  text[length++] = '\n';
  [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, text, length);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

struct Options {
  std::string seeds = "1..100";
  std::string kind = "transfers";
  double seconds = 0;  // 0: all seeds, however long it takes
  size_t lines = 200;  // of a failing history; 0: all
  bool verbose = false;
};

bool parse_seeds(const std::string& text, uint64_t& first, uint64_t& last) {
  const size_t dots = text.find("..");
  const auto number = [](const std::string& digits, uint64_t& out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    return error == std::errc() && end == digits.data() + digits.size();
  };
  if (dots == std::string::npos) return number(text, first) && number(text, last);
  return number(text.substr(0, dots), first) && number(text.substr(dots + 2), last) && first <= last;
}

void tell(const Verdict& verdict, const Options& options) {
  const size_t size = verdict.history.size();
  const size_t from = options.lines == 0 || size <= options.lines ? 0 : size - options.lines;
  if (from > 0) fmt::print("... {} lines before (--lines 0 shows them)\n", from);
  for (size_t i = from; i < size; ++i) fmt::print("{}\n", verdict.history[i]);
  fmt::print("{} seed {} FAILED: {}\nagain: scripts/simulate --kind {} --seeds {}\n", options.kind, verdict.seed,
             verdict.failure, options.kind, verdict.seed);
}

int run(const Options& options) {
  uint64_t first = 0;
  uint64_t last = 0;
  const Scenario scenario = find_scenario(options.kind);
  if (scenario == nullptr || !parse_seeds(options.seeds, first, last)) {
    fmt::print(stderr, "no such kind or seeds: {} {}\n", options.kind, options.seeds);
    return 2;
  }
  const SystemClock clock;
  const TimePoint started = clock.now();
  uint64_t events = 0;
  uint64_t done = 0;
  for (uint64_t seed = first; seed <= last; ++seed) {
    if (options.seconds > 0 && seconds(clock.now() - started) > options.seconds) break;
    current_seed.store(seed);
    const Verdict verdict = scenario(seed, false);
    events += verdict.events;
    ++done;
    if (options.verbose)
      fmt::print("seed {}: {} events, {}, digest {:016x}\n", seed, verdict.events, verdict.tally, verdict.digest);
    if (verdict.failure.empty()) continue;
    const Verdict told = scenario(seed, true);
    tell(told, options);
    if (told.digest != verdict.digest) fmt::print("this seed does not run twice in the same way\n");
    return 1;
  }
  const double took = seconds(clock.now() - started);
  fmt::print("{}: {} seeds held ({}..{}), {} events, {:.1f} s\n", options.kind, done, first, first + done - 1, events,
             took);
  return 0;
}

}  // namespace
}  // namespace kvferry::simulator

int main(int argc, char** argv) {
  kvferry::simulator::Options options;
  CLI::App app{"Runs engines under virtual time with faults drawn from seeds"};
  app.add_option("--seeds", options.seeds, "A or A..B")->capture_default_str();
  app.add_option("--kind", options.kind, "what the engines do: transfers, parcels, crowd")->capture_default_str();
  app.add_option("--seconds", options.seconds, "stop after this time (0: after the last seed)")->capture_default_str();
  app.add_option("--lines", options.lines, "of a failing history (0: all)")->capture_default_str();
  app.add_flag("--verbose", options.verbose, "a line for each seed");
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGABRT, kvferry::simulator::name_seed_and_die);
  std::signal(SIGSEGV, kvferry::simulator::name_seed_and_die);
  return kvferry::simulator::run(options);
}
