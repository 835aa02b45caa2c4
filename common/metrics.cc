#include "common/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvferry {
namespace {

std::string render(const Labels& labels) {
  std::string out;
  for (const auto& [name, value] : labels) {
    out += (out.empty() ? "" : ",") + name + "=\"";
    for (const char c : value) {
      if (c == '\\' || c == '"') out += '\\';
      if (c == '\n') {
        out += "\\n";
        continue;
      }
      out += c;
    }
    out += '"';
  }
  return out;
}

std::string braces(const std::string& labels) {
  return labels.empty() ? "" : "{" + labels + "}";
}

std::string with_le(const std::string& labels, const std::string& bound) {
  return "{" + labels + (labels.empty() ? "" : ",") + "le=\"" + bound + "\"}";
}

void expose_one(std::string& out, const std::string& name, const std::string& labels, const Histogram& histogram) {
  uint64_t cumulative = 0;
  for (size_t i = 0; i < histogram.bounds().size(); ++i) {
    cumulative += histogram.bucket(i);
    out += fmt::format("{}_bucket{} {}\n", name, with_le(labels, fmt::format("{}", histogram.bounds()[i])), cumulative);
  }
  cumulative += histogram.bucket(histogram.bounds().size());
  out += fmt::format("{}_bucket{} {}\n", name, with_le(labels, "+Inf"), cumulative);
  out += fmt::format("{}_sum{} {}\n{}_count{} {}\n", name, braces(labels), histogram.sum(), name, braces(labels),
                     cumulative);
}

template <class Metric>
void expose_one(std::string& out, const std::string& name, const std::string& labels, const Metric& metric) {
  out += fmt::format("{}{} {}\n", name, braces(labels), metric.value());
}

template <class Families>
void expose_all(std::string& out, const Families& families, std::string_view type) {
  for (const auto& [name, family] : families) {
    out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, family.help, name, type);
    for (const auto& [labels, metric] : family.series) expose_one(out, name, labels, metric);
  }
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), buckets_(bounds_.size() + 1) {}

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  buckets_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

uint64_t Histogram::count() const {
  uint64_t total = 0;
  for (const auto& bucket : buckets_) total += bucket.load(std::memory_order_relaxed);
  return total;
}

std::vector<double> latency_bounds() {
  return {50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3,
          0.1,   0.25,   0.5,    1,      2.5,  5,      10,   25,    50,    100};
}

template <class Metric, class... Args>
Metric& MetricsRegistry::find(std::map<std::string, Family<Metric>>& families, const std::string& name,
                              const std::string& help, const Labels& labels, Args&&... args) {
  const std::lock_guard lock(mutex_);
  Family<Metric>& family = families[name];
  if (family.help.empty()) family.help = help;
  std::string key = render(labels);
  if (family.series.size() >= kMaxSeries && !family.series.contains(key)) key = "overflow=\"true\"";
  return family.series.try_emplace(key, std::forward<Args>(args)...).first->second;
}

Counter& MetricsRegistry::counter(const std::string& name, const std::string& help, const Labels& labels) {
  return find(counters_, name, help, labels);
}

Gauge& MetricsRegistry::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  return find(gauges_, name, help, labels);
}

Histogram& MetricsRegistry::histogram(const std::string& name, const std::string& help, std::vector<double> bounds,
                                      const Labels& labels) {
  return find(histograms_, name, help, labels, std::move(bounds));
}

void MetricsRegistry::on_collect(std::function<void()> refresh) {
  const std::lock_guard lock(mutex_);
  refreshers_.push_back(std::move(refresh));
}

std::string MetricsRegistry::expose() const {
  std::vector<std::function<void()>> refreshers;
  {
    const std::lock_guard lock(mutex_);
    refreshers = refreshers_;
  }
  for (const auto& refresh : refreshers) refresh();
  const std::lock_guard lock(mutex_);
  std::string out;
  expose_all(out, counters_, "counter");
  expose_all(out, gauges_, "gauge");
  expose_all(out, histograms_, "histogram");
  return out;
}

}  // namespace kvferry
