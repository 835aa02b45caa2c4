#include "sim/metrics_page.h"

namespace kvferry::sim {
namespace {

// "# HELP name ..." -> name
std::string_view commented_name(std::string_view line) {
  const size_t at = line.find(' ', 2) + 1;
  return line.substr(at, line.find(' ', at) - at);
}

std::string labelled(std::string_view sample, std::string_view label) {
  if (label.empty()) return std::string(sample);
  const size_t name = sample.find_first_of("{ ");
  std::string out(sample.substr(0, name));
  out.append("{").append(label);
  const bool has_labels = sample[name] == '{';
  return out.append(has_labels ? "," : "}").append(sample.substr(name + (has_labels ? 1 : 0)));
}

}  // namespace

void MetricsPage::add(std::string_view exposition, std::string_view label) {
  Family* family = nullptr;
  bool fresh = false;
  while (!exposition.empty()) {
    const size_t end = exposition.find('\n');
    const std::string_view line = exposition.substr(0, end);
    exposition.remove_prefix(end == std::string_view::npos ? exposition.size() : end + 1);
    if (line.starts_with("# ")) {
      const std::string_view name = commented_name(line);
      if (line.starts_with("# HELP ")) {
        const auto [found, added] = families_.try_emplace(std::string(name));
        family = &found->second;
        fresh = added;
        if (added) order_.emplace_back(name);
      }
      if (fresh && family != nullptr) family->comments.append(line).append("\n");
    } else if (!line.empty() && family != nullptr) {
      family->samples.append(labelled(line, label)).append("\n");
    }
  }
}

std::string MetricsPage::text() const {
  std::string out;
  for (const std::string& name : order_) {
    const Family& family = families_.find(name)->second;
    out += family.comments + family.samples;
  }
  return out;
}

}  // namespace kvferry::sim
