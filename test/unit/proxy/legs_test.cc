#include "proxy/legs.h"

#include <gtest/gtest.h>

namespace kvferry::proxy {
namespace {

struct LegsTest : testing::Test {
  Scanner scanner;
  std::string body;

  RequestFacts read(Endpoint endpoint, const std::string& text) {
    body.reserve(text.size() + 64);
    body.assign(text);
    auto facts = read_request(endpoint, body, scanner);
    if (!facts.ok()) {
      ADD_FAILURE() << facts.error().to_string();
      return {};
    }
    return std::move(*facts);
  }
  std::string_view alone(Endpoint endpoint, const std::string& text) { return read(endpoint, text).alone; }
  std::string prefill(Endpoint endpoint, const std::string& text) {
    return prefill_body(endpoint, read(endpoint, text), R"({"x":1})").joined();
  }
};

TEST_F(LegsTest, Trap1PrefillLegDropsMinTokensAboveOne) {
  const std::string out = prefill(Endpoint::completions, R"({"prompt":"p","min_tokens":64,"max_tokens":100})");
  EXPECT_EQ(
      out,
      R"({"stream":false,"max_tokens":1,"n":1,"min_tokens":1,"ignore_eos":true,"kv_transfer_params":{"x":1},"prompt":"p"})");
}

TEST_F(LegsTest, Trap2PrefillLegCannotEndEarly) {
  const std::string out = prefill(
      Endpoint::completions, R"({"prompt":"p","stop":["a"],"stop_token_ids":[1],"ignore_eos":false,"min_tokens":0})");
  EXPECT_EQ(out.find("\"stop\""), std::string::npos);
  EXPECT_EQ(out.find("stop_token_ids"), std::string::npos);
  EXPECT_NE(out.find("\"ignore_eos\":true"), std::string::npos);
  EXPECT_EQ(out.find("\"ignore_eos\":false"), std::string::npos);
}

TEST_F(LegsTest, PrefillLegKeepsWhatShapesThePrompt) {
  const std::string kept =
      R"("messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}}]}],"tools":[{"a":1}],"tool_choice":"auto","chat_template_kwargs":{"enable_thinking":false},"temperature":0.50)";
  const std::string out = prefill(
      Endpoint::chat,
      "{" + kept +
          R"(,"stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":5,"max_completion_tokens":9})");
  EXPECT_EQ(
      out,
      R"({"stream":false,"max_tokens":1,"max_completion_tokens":1,"n":1,"min_tokens":1,"ignore_eos":true,"kv_transfer_params":{"x":1},)" +
          kept + "}");
}

TEST_F(LegsTest, ResponsesLegUsesItsOwnNameForTokens) {
  const std::string out = prefill(Endpoint::responses, R"({"input":"p","max_output_tokens":100})");
  EXPECT_NE(out.find("\"max_output_tokens\":1,"), std::string::npos);
  EXPECT_EQ(out.find("max_tokens"), std::string::npos);
}

TEST_F(LegsTest, Trap4WhatCannotBeSplitGoesToTheDecoderAlone) {
  const auto completion = [&](const std::string& more) {
    return alone(Endpoint::completions, "{\"prompt\":\"p\"" + more + "}");
  };
  EXPECT_EQ(completion(""), "");
  EXPECT_EQ(completion(",\"n\":1"), "");
  EXPECT_EQ(completion(",\"n\":null"), "");
  EXPECT_EQ(completion(",\"n\":2"), "n");
  EXPECT_EQ(completion(",\"n\":1,\"n\":3"), "n");
  EXPECT_EQ(completion(",\"best_of\":4"), "best_of");
  EXPECT_EQ(completion(",\"use_beam_search\":true"), "beam_search");
  EXPECT_EQ(completion(",\"prompt_logprobs\":0"), "prompt_logprobs");
  EXPECT_EQ(completion(",\"echo\":true"), "echo");
  EXPECT_EQ(completion(",\"max_tokens\":0"), "max_tokens");
  EXPECT_EQ(alone(Endpoint::completions, R"({"prompt":["a","b"]})"), "several_prompts");
  EXPECT_EQ(alone(Endpoint::completions, R"({"prompt":[[1,2],[3]]})"), "several_prompts");
  EXPECT_EQ(alone(Endpoint::completions, R"({"prompt":["a, [b"]})"), "");
  EXPECT_EQ(alone(Endpoint::completions, R"({"prompt":[1,2,3]})"), "");
  EXPECT_EQ(alone(Endpoint::completions, R"({"prompt":[[1,2,3]]})"), "");
  EXPECT_EQ(alone(Endpoint::chat, R"({"model":"m"})"), "no_prompt");
  EXPECT_EQ(alone(Endpoint::responses, R"({"input":"a","previous_response_id":"r"})"), "previous_response");
}

TEST_F(LegsTest, Trap11DecodeLegKeepsTheClientsBytes) {
  const std::string text = "{ \"z\":1.000,\t\"prompt\":\"\\u00e9\\/\", \"a\":[1 ,2]}";
  const RequestFacts facts = read(Endpoint::completions, text);
  EXPECT_EQ(decode_body(facts.members, "{\"t\":1}").joined(), "{\"kv_transfer_params\":{\"t\":1}," + text.substr(1));
  EXPECT_EQ(decode_body(facts.members, {}).joined(), text);
}

TEST_F(LegsTest, ClientsCannotChooseWhereADecoderConnects) {
  const RequestFacts facts = read(
      Endpoint::completions,
      R"({"kv_transfer_params":{"remote_bootstrap_addr":"http://evil"},"prompt":"p","kv_transfer_p\u0061rams":{"remote_bootstrap_addr":"http://evil"}})");
  const std::string alone_body = decode_body(facts.members, {}).joined();
  EXPECT_EQ(alone_body, R"({"prompt":"p"})");
  const std::string body_with = decode_body(facts.members, "{}").joined();
  EXPECT_EQ(body_with.find("evil"), std::string::npos);
  EXPECT_EQ(prefill_body(Endpoint::completions, facts, "{}").joined().find("evil"), std::string::npos);
}

TEST_F(LegsTest, ParamsHiddenInVllmXargsAreRefused) {
  std::string text =
      R"({"prompt":"p","vllm_xargs":{"kv_transfer_\u0070arams":{"remote_bootstrap_addr":"http://evil"}}})";
  text.reserve(text.size() + 64);
  EXPECT_FALSE(read_request(Endpoint::completions, text, scanner).ok());
}

TEST_F(LegsTest, StreamAndSessionAreRead) {
  const RequestFacts facts = read(Endpoint::chat, R"({"messages":[{"role":"user"}],"stream":true,"user":"me"})");
  EXPECT_TRUE(facts.stream);
  EXPECT_EQ(facts.session, "me");
  EXPECT_EQ(facts.prompt, R"([{"role":"user"}])");
}

TEST(Params, FollowTheContract) {
  EXPECT_EQ(prefill_params(Dialect::mooncake, "xfer-1"),
            R"({"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-1"})");
  const Handover handover{"xfer-1", "http://[::1]:8998", "engine", ""};
  EXPECT_EQ(
      decode_params(Dialect::kvferry, handover),
      R"({"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":"http://[::1]:8998","remote_engine_id":"engine","transfer_id":"xfer-1"})");
  EXPECT_EQ(decode_params(Dialect::lmcache, handover), "");
  EXPECT_EQ(decode_params(Dialect::nixl, {"", "", "", "{\"r\":1}"}), "{\"r\":1}");
}

}  // namespace
}  // namespace kvferry::proxy
