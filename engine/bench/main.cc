#include <fmt/format.h>

#include <cstdio>
#include <fstream>

#include "engine/bench/auth.h"
#include "engine/bench/controls.h"
#include "engine/bench/doctor.h"
#include "engine/bench/options.h"
#include "engine/bench/report.h"
#include "engine/bench/runner.h"
#include "engine/bench/wire_peer.h"

// kvferry-bench: what transfers cost, beside what the kernel itself gives (engine/bench/design.md).

namespace kvferry::bench {
namespace {

struct Results {
  std::vector<Row> rows;
  std::vector<Figure> figures;
};

Status run_cases(const Options& options, std::FILE* table, Results& results) {
  if (options.cases.empty()) return {};
  KVF_ASSIGN_OR_RETURN(Remote remote, options.connect.empty()
                                          ? Remote::spawn(options.target.pool, options.target.plugin)
                                          : Remote::connect(options.connect));
  KVF_ASSIGN_OR_RETURN(const auto runner, Runner::create(std::move(remote), options.runner));
  Progress progress;
  fmt::print(table, "{}\n", header_line());
  for (size_t i = 0; i < options.cases.size(); ++i) {
    const Case& tested = options.cases[i];
    progress.show(fmt::format("case {} of {}: {}", i + 1, options.cases.size(), to_line(tested)));
    auto row = runner->run(tested);
    progress.clear();
    if (!row) {
      Error error = std::move(row).error();
      error.message = to_line(tested) + ": " + error.message;
      return error;
    }
    fmt::print(table, "{}\n", line_of(*row));
    std::fflush(table);
    results.rows.push_back(std::move(*row));
  }
  if (options.runner.verify) fmt::print(table, "every byte of {} cases verified\n", options.cases.size());
  return {};
}

Status run_controls(const Options& options, std::FILE* table, Results& results) {
  Progress progress;
  for (const std::string& name : options.controls) {
    progress.show("control figure " + name);
    KVF_ASSIGN_OR_RETURN(std::vector<Figure> figures, run_control(name));
    progress.clear();
    for (Figure& figure : figures) {
      fmt::print(table, "{}\n", line_of(figure));
      results.figures.push_back(std::move(figure));
    }
    std::fflush(table);
  }
  return {};
}

Status write_json(const std::string& path, const Results& results) {
  const std::string text = to_json(results.rows, results.figures);
  if (path == "-") {
    fmt::print("{}", text);
    return {};
  }
  std::ofstream file(path);
  file << text;
  file.close();
  return file ? Status() : Status(Error{ErrorCode::internal, "cannot write " + path});
}

// The exit status: whether all goals are reached, and there was one.
int check(const Results& results, std::FILE* table) {
  size_t judged = 0;
  const std::vector<std::string> missed = missed_goals(results.rows, results.figures, judged);
  fmt::print(table, "{} of {} goals reached\n", judged - missed.size(), judged);
  for (const std::string& line : missed) fmt::print(table, "missed: {}\n", line);
  if (judged == 0) fmt::print(stderr, "kvferry-bench: --check, but no goal is set for these cases\n");
  return judged > 0 && missed.empty() ? 0 : 1;
}

int fail(const Error& error) {
  fmt::print(stderr, "kvferry-bench: {}\n", error.to_string());
  return 2;
}

int measure(const Options& options) {
  std::FILE* const table = options.json == "-" ? stderr : stdout;
  Results results;
  const auto keys = use_trial_keys(options.auth);
  if (!keys) return fail(keys.error());
  if (Status status = run_cases(options, table, results); !status.ok()) return fail(status.error());
  if (Status status = run_controls(options, table, results); !status.ok()) return fail(status.error());
  if (!options.json.empty())
    if (Status status = write_json(options.json, results); !status.ok()) return fail(status.error());
  return options.check ? check(results, table) : 0;
}

Status examine() {
  KVF_ASSIGN_OR_RETURN(const std::string text, examine_this_host());
  fmt::print("{}", text);
  return {};
}

int run(const Options& options) {
  Status status;
  switch (options.role) {
    case Options::Role::initiator:
      return measure(options);
    case Options::Role::doctor:
      status = examine();
      break;
    case Options::Role::target:
      status = run_target(options.target);
      break;
    case Options::Role::crowd:
      status = run_crowd(options.scripted_peer_of, options.sessions);
      break;
    case Options::Role::reader:
      status = run_reader(options.scripted_peer_of, options.bytes_per_second);
      break;
  }
  return status.ok() ? 0 : fail(status.error());
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) {
  int status = 0;
  const auto options = kvferry::bench::parse_options(argc, argv, status);
  return options ? kvferry::bench::run(*options) : status;
}
