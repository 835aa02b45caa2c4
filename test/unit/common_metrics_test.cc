#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "common/metrics.h"

namespace kvferry {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Registry, ExposesCountersAndGaugesInPrometheusText) {
  MetricsRegistry registry;
  registry.counter("kvferry_bytes_total", "Bytes moved", {{"fabric", "tcp"}, {"way", "read"}}).add(3);
  registry.gauge("kvferry_sessions", "Open sessions").set(-2);
  EXPECT_EQ(registry.expose(),
            "# HELP kvferry_bytes_total Bytes moved\n"
            "# TYPE kvferry_bytes_total counter\n"
            "kvferry_bytes_total{fabric=\"tcp\",way=\"read\"} 3\n"
            "# HELP kvferry_sessions Open sessions\n"
            "# TYPE kvferry_sessions gauge\n"
            "kvferry_sessions -2\n");
}

TEST(Registry, EscapesLabelValues) {
  MetricsRegistry registry;
  registry.counter("c_total", "help", {{"peer", "a\\b\"c\nd"}}).add();
  EXPECT_THAT(registry.expose(), HasSubstr("c_total{peer=\"a\\\\b\\\"c\\nd\"} 1\n"));
}

TEST(Registry, GivesTheSameObjectForTheSameNameAndLabels) {
  MetricsRegistry registry;
  Counter& first = registry.counter("c_total", "help", {{"a", "1"}});
  EXPECT_EQ(&first, &registry.counter("c_total", "other help", {{"a", "1"}}));
  EXPECT_NE(&first, &registry.counter("c_total", "help", {{"a", "2"}}));
  EXPECT_NE(&first, &registry.counter("c_total", "help"));
  EXPECT_THAT(registry.expose(), Not(HasSubstr("other help")));
}

TEST(Registry, SharesOneSeriesAboveItsLimit) {
  MetricsRegistry registry;
  for (size_t i = 0; i < MetricsRegistry::kMaxSeries; ++i)
    registry.counter("c_total", "help", {{"peer", std::to_string(i)}}).add();
  Counter& overflow = registry.counter("c_total", "help", {{"peer", "one too many"}});
  overflow.add(5);
  EXPECT_EQ(&overflow, &registry.counter("c_total", "help", {{"peer", "and another"}}));
  EXPECT_EQ(registry.counter("c_total", "help", {{"peer", "0"}}).value(), 1u) << "known series stay their own";
  const std::string text = registry.expose();
  EXPECT_THAT(text, HasSubstr("c_total{overflow=\"true\"} 5\n"));
  EXPECT_THAT(text, Not(HasSubstr("one too many")));
  EXPECT_THAT(registry.counter("d_total", "help", {{"peer", "x"}}).value(), 0u) << "the limit is per name";
}

TEST(Histogram, CountsABoundIntoItsOwnBucket) {
  Histogram histogram({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 2.0, 2.5}) histogram.observe(value);
  EXPECT_EQ(histogram.bucket(0), 2u);
  EXPECT_EQ(histogram.bucket(1), 2u);
  EXPECT_EQ(histogram.bucket(2), 1u);
  EXPECT_EQ(histogram.count(), 5u);
  EXPECT_DOUBLE_EQ(histogram.sum(), 7.5);
}

TEST(Histogram, IsExposedWithCumulativeBuckets) {
  MetricsRegistry registry;
  Histogram& histogram = registry.histogram("h_seconds", "help", {0.001, 1}, {{"fabric", "local"}});
  histogram.observe(0.0005);
  histogram.observe(0.5);
  histogram.observe(50);
  EXPECT_EQ(registry.expose(),
            "# HELP h_seconds help\n"
            "# TYPE h_seconds histogram\n"
            "h_seconds_bucket{fabric=\"local\",le=\"0.001\"} 1\n"
            "h_seconds_bucket{fabric=\"local\",le=\"1\"} 2\n"
            "h_seconds_bucket{fabric=\"local\",le=\"+Inf\"} 3\n"
            "h_seconds_sum{fabric=\"local\"} 50.5005\n"
            "h_seconds_count{fabric=\"local\"} 3\n");
}

TEST(Histogram, WithoutLabelsHasOnlyTheBound) {
  MetricsRegistry registry;
  registry.histogram("h_seconds", "help", {1});
  EXPECT_THAT(registry.expose(), HasSubstr("h_seconds_bucket{le=\"+Inf\"} 0\nh_seconds_sum 0\nh_seconds_count 0\n"));
}

TEST(Registry, RefreshesDerivedGaugesBeforeEachExposition) {
  MetricsRegistry registry;
  int64_t state = 1;
  Gauge& gauge = registry.gauge("g", "help");
  registry.on_collect([&] { gauge.set(state); });
  EXPECT_THAT(registry.expose(), HasSubstr("g 1\n"));
  state = 2;
  EXPECT_THAT(registry.expose(), HasSubstr("g 2\n"));
}

TEST(Registry, LosesNoCountFromManyThreads) {
  MetricsRegistry registry;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        registry.counter("c_total", "help", {{"peer", std::to_string(i % 3)}}).add();
        registry.histogram("h", "help", {1}).observe(1);
      }
    });
  for (auto& thread : threads) thread.join();
  uint64_t total = 0;
  for (int i = 0; i < 3; ++i) total += registry.counter("c_total", "help", {{"peer", std::to_string(i)}}).value();
  EXPECT_EQ(total, 8000u);
  EXPECT_DOUBLE_EQ(registry.histogram("h", "help", {1}).sum(), 8000.0);
}

}  // namespace
}  // namespace kvferry
