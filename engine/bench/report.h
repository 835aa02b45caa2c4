#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "engine/bench/runner.h"

namespace kvferry::bench {

// A control figure: one number that is no case.
struct Figure {
  std::string name;
  double value = 0;
  std::string unit;
  std::optional<Verdict> verdict;
};

std::string header_line();
std::string line_of(const Row& row);
std::string line_of(const Figure& figure);

// Everything as one JSON document.
std::string to_json(const std::vector<Row>& rows, const std::vector<Figure>& figures);

// The goals that were missed, one line each; `judged` counts the goals that there were.
std::vector<std::string> missed_goals(const std::vector<Row>& rows, const std::vector<Figure>& figures, size_t& judged);

// What is going on, in one line of a terminal that is overwritten; nothing where standard error is none.
class Progress {
 public:
  Progress();
  ~Progress() { clear(); }
  void show(const std::string& text);
  void clear();

 private:
  const bool shown_;
};

}  // namespace kvferry::bench
