#include "engine/bench/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "common/config.h"
#include "engine/bench/controls.h"

namespace kvferry::bench {
namespace {

// What CLI11 fills in, before it is understood.
struct Words {
  bool self = false;
  bool doctor = false;
  std::string target;
  std::string crowd;
  std::string reader;
  std::string suite;
  std::vector<std::string> fabrics = {"local", "tcp"};
  std::vector<std::string> operations = {"read", "write"};
  std::vector<std::string> blocks;
  std::vector<size_t> counts = {1};
  std::vector<int> threads = {1};
  std::vector<std::string> layouts = {"scattered"};
  std::string pool;
  std::string auth = "open";
  double seconds = 1;
  int64_t slow_us = 0;
};

void add_roles(CLI::App& app, Options& options, Words& words) {
  app.add_flag("--self", words.self, "Spawn a target on this host and measure it (the default)");
  app.add_option("--target", words.target, "Be a target; its control port is bound to this HOST:PORT")
      ->expected(0, 1)
      ->default_str("127.0.0.1:0");
  app.add_option("--connect", options.connect, "Measure the target with this control HOST:PORT");
  app.add_flag("--once", options.target.once, "As a target: end with the first initiator");
  app.add_option("--pool", words.pool, "Bytes of memory on either side (512M, or what the largest case needs)");
  app.add_flag("--doctor", words.doctor, "Say what this host has, and which fabrics are viable on it and why");
  app.add_option("--crowd", words.crowd, "Be many peers that only beat, of the engine at this HOST:PORT")->group("");
  app.add_option("--sessions", options.sessions, "How many peers the crowd has")->group("");
  app.add_option("--reader", words.reader, "Be a slow reader of the engine at this HOST:PORT")->group("");
  app.add_option("--rate", options.bytes_per_second, "Bytes a second of the slow reader")->group("");
}

void add_cases(CLI::App& app, Options& options, Words& words) {
  app.add_option("--suite", words.suite, "goals, quick, controls, all or none (default: goals, none with --block)")
      ->check(CLI::IsMember({"goals", "quick", "controls", "all", "none"}));
  app.add_option("--controls", options.controls, "Control figures by name")
      ->delimiter(',')
      ->check(CLI::IsMember(control_names()));
  app.add_option("--block", words.blocks, "Sizes of a block: 4K,64K,1M")->delimiter(',');
  app.add_option("--count", words.counts, "Blocks of a transfer")->delimiter(',')->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", words.threads, "Threads that transfer at once")->delimiter(',')->check(CLI::Range(1, 64));
  app.add_option("--op", words.operations, "read, write")->delimiter(',')->check(CLI::IsMember({"read", "write"}));
  app.add_option("--fabric", words.fabrics, "local, tcp, ucx, ofi (a target must be told of the last two, too)")
      ->delimiter(',')
      ->check(CLI::IsMember({"local", "tcp", "ucx", "ofi"}));
  app.add_option("--layout", words.layouts, "scattered, contiguous")
      ->delimiter(',')
      ->check(CLI::IsMember({"scattered", "contiguous"}));
}

void add_measuring(CLI::App& app, Options& options, Words& words) {
  app.add_option("--seconds", words.seconds, "Time for the product's samples of each case")
      ->check(CLI::Range(0.0, 600.0));
  app.add_option("--burst", options.runner.burst, "Samples in a row before the raw limit has its turn")
      ->check(CLI::Range(1, 1000));
  app.add_flag("--verify", options.runner.verify, "Check every byte of both pools after one transfer of each case");
  app.add_option("--auth", words.auth, "open, psk, mtls: with keys made for this run")
      ->check(CLI::IsMember({"open", "psk", "mtls"}));
  app.add_flag("--check", options.check, "Exit with status 1 when a goal is missed");
  app.add_option("--slow-us", words.slow_us, "Add this to each transfer: proves that the check can fail")
      ->check(CLI::Range(0, 10'000'000));
  app.add_option("--json", options.json, "Write everything to this file (-: standard output)");
}

Result<std::vector<Case>> swept_cases(const Words& words) {
  std::vector<Case> cases;
  for (const std::string& fabric : words.fabrics)
    for (const std::string& text : words.blocks) {
      KVF_ASSIGN_OR_RETURN(const uint64_t block, parse_size(text));
      if (block == 0 || block % 8 != 0) return Error{ErrorCode::invalid_argument, "a block is a multiple of 8 bytes"};
      for (const size_t count : words.counts)
        for (const std::string& layout : words.layouts)
          for (const int threads : words.threads)
            for (const std::string& operation : words.operations)
              cases.push_back({fabric, operation == "read" ? Operation::read : Operation::write, block, count,
                               layout == "scattered", threads});
    }
  return cases;
}

// Turns words into what they mean.
Status understand(const Words& words, bool is_target, Options& options) {
  if (is_target) {
    options.role = Options::Role::target;
    if (!words.target.empty()) options.target.listen = words.target;
  } else if (words.doctor) {
    options.role = Options::Role::doctor;
  } else if (!words.crowd.empty() || !words.reader.empty()) {
    options.role = words.crowd.empty() ? Options::Role::reader : Options::Role::crowd;
    options.scripted_peer_of = words.crowd.empty() ? words.reader : words.crowd;
  }
  for (const AuthMode mode : {AuthMode::psk, AuthMode::mtls})
    if (words.auth == to_string(mode)) options.auth = mode;
  options.runner.time = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(words.seconds));
  options.runner.handicap = std::chrono::microseconds(words.slow_us);
  KVF_ASSIGN_OR_RETURN(options.cases, swept_cases(words));
  const bool named = !options.cases.empty() || !options.controls.empty();
  const std::string suite = !words.suite.empty() ? words.suite : named ? "none" : "goals";
  const auto wanted = [&](const Case& tested) {
    const char* operation = tested.operation == Operation::read ? "read" : "write";
    return std::find(words.fabrics.begin(), words.fabrics.end(), tested.fabric) != words.fabrics.end() &&
           std::find(words.operations.begin(), words.operations.end(), operation) != words.operations.end();
  };
  for (const std::string& fabric : words.fabrics)
    if (!is_builtin_fabric(fabric)) options.target.plugin = fabric;
  if (suite == "goals" || suite == "quick" || suite == "all")
    for (const Case& tested : goal_cases(suite == "quick"))
      if (wanted(tested)) options.cases.push_back(tested);
  if (suite == "controls" || suite == "all") options.controls = control_names();
  if (!words.pool.empty()) {
    KVF_ASSIGN_OR_RETURN(options.target.pool, parse_size(words.pool));
  } else {
    for (const Case& tested : options.cases)
      options.target.pool = std::max(options.target.pool, tested.bytes() * static_cast<uint64_t>(tested.threads));
  }
  return {};
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv, int& status) {
  CLI::App app{"Measures kvferry's transfers between two processes against what the kernel itself gives."};
  Options options;
  Words words;
  add_roles(app, options, words);
  add_cases(app, options, words);
  add_measuring(app, options, words);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    status = app.exit(error);
    return std::nullopt;
  }
  if (Status understood = understand(words, app.count("--target") > 0, options); !understood.ok()) {
    fmt::print(stderr, "kvferry-bench: {}\n", understood.error().to_string());
    status = 2;
    return std::nullopt;
  }
  return options;
}

}  // namespace kvferry::bench
