#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/api.h"

namespace kvferry {

// Counters, gauges and histograms with Prometheus' text exposition. Written here, not taken from prometheus-cpp: that
// library's pull server, registry locks and shared object would come along for three kinds of atomics
// (docs/contributing.md). Objects live as long as their MetricsRegistry; updates are lock-free and may come from any
// thread.

using Labels = std::vector<std::pair<std::string, std::string>>;

class Counter {
 public:
  void add(uint64_t amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

class Gauge {
 public:
  void set(int64_t value) { value_.store(value, std::memory_order_relaxed); }
  void add(int64_t amount) { value_.fetch_add(amount, std::memory_order_relaxed); }
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

// Cumulative buckets with fixed upper bounds (ascending, in the unit of the metric's name).
class KVFERRY_API Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);
  void observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  uint64_t bucket(size_t index) const { return buckets_[index].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }
  uint64_t count() const;

 private:
  std::vector<double> bounds_;
  std::deque<std::atomic<uint64_t>> buckets_;  // one more than bounds: +Inf
  std::atomic<double> sum_{0};
};

// 50 us to 100 s in steps of about 2.5: for durations in seconds.
std::vector<double> latency_bounds();

class KVFERRY_API MetricsRegistry {
 public:
  // The same name and labels give the same object; names follow Prometheus' rules (kvferry_..., _total for counters).
  // At most `kMaxSeries` label sets a name (I6): further ones share one series labelled overflow="true".
  Counter& counter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge& gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram& histogram(const std::string& name, const std::string& help, std::vector<double> bounds,
                       const Labels& labels = {});

  // Called before each exposition, to refresh gauges that are derived from state.
  void on_collect(std::function<void()> refresh);

  // Prometheus' text format, version 0.0.4.
  std::string expose() const;

  static constexpr size_t kMaxSeries = 1000;

 private:
  template <class Metric>
  struct Family {
    std::string help;
    std::map<std::string, Metric> series;  // by rendered labels
  };
  template <class Metric, class... Args>
  Metric& find(std::map<std::string, Family<Metric>>& families, const std::string& name, const std::string& help,
               const Labels& labels, Args&&... args);

  mutable std::mutex mutex_;
  std::map<std::string, Family<Counter>> counters_;
  std::map<std::string, Family<Gauge>> gauges_;
  std::map<std::string, Family<Histogram>> histograms_;
  std::vector<std::function<void()>> refreshers_;
};

}  // namespace kvferry
