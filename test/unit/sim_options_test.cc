#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sim/options.h"

namespace kvferry::sim {
namespace {

ParsedOptions parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "kvferry-sim");
  return parse_options(static_cast<int>(arguments.size()), arguments.data());
}

TEST(SimOptions, FlagsReachTheirFields) {
  const ParsedOptions parsed = parse({"--role",
                                      "decode",
                                      "--tp",
                                      "2",
                                      "--block-size",
                                      "32",
                                      "--num-blocks",
                                      "77",
                                      "--max-model-len",
                                      "500",
                                      "--no-prefix-cache",
                                      "--kv-load-failure-policy",
                                      "recompute",
                                      "--port",
                                      "8200",
                                      "--generate",
                                      "hi",
                                      "--temperature",
                                      "0.5",
                                      "--logprobs",
                                      "3"});
  ASSERT_TRUE(parsed.options.has_value()) << parsed.message;
  const SimOptions& options = *parsed.options;
  EXPECT_EQ(options.role, ServerRole::decode);
  EXPECT_EQ(options.tp, 2u);
  EXPECT_EQ(options.model.block_size, 32u);
  EXPECT_EQ(options.serving.scheduler.block_size, 32u);
  EXPECT_EQ(options.serving.scheduler.blocks, 77u);
  EXPECT_EQ(options.serving.scheduler.max_model_len, 500u);
  EXPECT_FALSE(options.serving.scheduler.prefix_cache);
  EXPECT_TRUE(options.serving.recompute_failed_loads);
  EXPECT_EQ(options.port, 8200);
  EXPECT_EQ(options.generate, "hi");
  EXPECT_EQ(options.sampling.logprobs, 3u);
}

TEST(SimOptions, WithoutFlagsItServesBothRolesWithAPrefixCache) {
  const ParsedOptions parsed = parse({});
  ASSERT_TRUE(parsed.options.has_value());
  EXPECT_EQ(parsed.options->role, ServerRole::both);
  EXPECT_TRUE(parsed.options->serving.scheduler.prefix_cache);
  EXPECT_FALSE(parsed.options->serving.recompute_failed_loads);
  EXPECT_FALSE(parsed.options->generate.has_value());
}

TEST(SimOptions, WrongFlagsAreNamedAndHelpIsNoError) {
  const ParsedOptions wrong = parse({"--role", "chef"});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.message, ::testing::HasSubstr("--role"));
  const ParsedOptions help = parse({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.message, ::testing::HasSubstr("--max-num-batched-tokens"));
}

}  // namespace
}  // namespace kvferry::sim
