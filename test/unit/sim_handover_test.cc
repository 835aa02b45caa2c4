#include <gtest/gtest.h>

#include "sim/metrics_page.h"
#include "sim/parcel_transfer.h"
#include "test/support/sim_support.h"

namespace kvferry::sim {
namespace {

TEST(HandoverLayout, NamesTheRowsThatTheModelReads) {
  for (const size_t tp : {size_t{1}, size_t{2}, size_t{8}}) {
    const auto model = make_model(ModelConfig{}, tp, 8);
    for (size_t rank = 0; rank < tp; ++rank) {
      const KvCacheView& cache = model->kv_cache(rank);
      const KvLayout layout = layout_of(cache, 7);
      ASSERT_TRUE(validate(layout).ok()) << validate(layout).error().to_string();
      EXPECT_EQ(layout.first_head(0), cache.first_head);
      for (size_t layer = 0; layer < cache.layers; ++layer) {
        for (size_t head = 0; head < cache.heads; ++head) {
          const auto offset = [&](const float* at) {
            return static_cast<uint64_t>(reinterpret_cast<const std::byte*>(at) - cache.base);
          };
          EXPECT_EQ(layout.layers[layer].k.row(5, head, 3), offset(cache.key(layer, 5, head, 3)));
          EXPECT_EQ(layout.layers[layer].v.row(5, head, 3), offset(cache.value(layer, 5, head, 3)));
        }
      }
    }
  }
}

TEST(HandoverFingerprint, DiffersWithModelSaltAndEveryToken) {
  const std::vector<Token> prompt = {1, 2, 3};
  const std::vector<Token> other = {1, 2, 4};
  const std::vector<Token> longer = {1, 2, 3, 0};
  const std::string same = kv_fingerprint("m", "s", prompt);
  EXPECT_EQ(same, kv_fingerprint("m", "s", prompt));
  EXPECT_NE(same, kv_fingerprint("n", "s", prompt));
  EXPECT_NE(same, kv_fingerprint("m", "t", prompt));
  EXPECT_NE(same, kv_fingerprint("m", "s", other));
  EXPECT_NE(same, kv_fingerprint("m", "s", longer));
}

TEST(MetricsPage, KeepsTheSamplesOfANameTogether) {
  MetricsPage page;
  page.add("# HELP a A\n# TYPE a counter\na 1\na{x=\"1\"} 2\n# HELP b B\n# TYPE b gauge\nb 3\n", "rank=\"0\"");
  page.add("# HELP a A\n# TYPE a counter\na 4\n", "rank=\"1\"");
  EXPECT_EQ(page.text(),
            "# HELP a A\n# TYPE a counter\na{rank=\"0\"} 1\na{rank=\"0\",x=\"1\"} 2\na{rank=\"1\"} 4\n"
            "# HELP b B\n# TYPE b gauge\nb{rank=\"0\"} 3\n");
}

TEST(MetricsPage, LeavesSamplesAloneWithoutALabel) {
  MetricsPage page;
  page.add("# HELP a A\n# TYPE a counter\na{x=\"1\"} 2\n");
  EXPECT_EQ(page.text(), "# HELP a A\n# TYPE a counter\na{x=\"1\"} 2\n");
}

}  // namespace
}  // namespace kvferry::sim
