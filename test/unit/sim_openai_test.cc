#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include "common/random.h"
#include "sim/json.h"
#include "sim/openai.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

using ::testing::HasSubstr;

const ParseContext kContext{.model = "kvferry-sim", .max_model_len = 1000, .seed = 99};

constexpr std::string_view kFull = R"({"model":"kvferry-sim","prompt":"hello","max_tokens":7,"min_tokens":2,
  "ignore_eos":true,"stop":["a","bc"],"stop_token_ids":[65,257],"seed":-3,"temperature":0.5,"top_p":0.9,"logprobs":3,
  "stream":true,"stream_options":{"include_usage":true},"n":1,"return_token_ids":true,"cache_salt":"s","user":"u",
  "kv_transfer_params":{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"xfer-1",
  "remote_bootstrap_addr":"http://[::1]:8998","remote_engine_id":"p0"}})";
constexpr std::string_view kChat = R"({"messages":[{"role":"system","content":"be short"},
  {"role":"user","content":[{"type":"text","text":"h\u00e9"},{"type":"text","text":"y"}]}],
  "max_completion_tokens":5,"logprobs":true,"top_logprobs":2,"stop":"x"})";

TEST(SimOpenAi, ReadsEveryFieldOfACompletion) {
  const auto parsed = parse_completion(kFull, kContext);
  ASSERT_TRUE(parsed.ok());
  const CompletionRequest& request = parsed.value();
  const SamplingParams& sampling = request.generation.sampling;
  EXPECT_EQ(request.generation.prompt, encode("hello"));
  EXPECT_EQ(sampling.max_tokens, 7u);
  EXPECT_EQ(sampling.min_tokens, 2u);
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_EQ(sampling.stop, (std::vector<std::string>{"a", "bc"}));
  EXPECT_EQ(sampling.stop_token_ids, (std::vector<Token>{65, 257}));
  EXPECT_EQ(sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_DOUBLE_EQ(sampling.temperature, 0.5);
  EXPECT_DOUBLE_EQ(sampling.top_p, 0.9);
  EXPECT_EQ(sampling.logprobs, 3u);
  EXPECT_TRUE(request.stream && request.include_usage && request.return_token_ids);
  EXPECT_EQ(request.generation.role, KvRole::consume);
  EXPECT_EQ(request.generation.transfer.transfer_id, "xfer-1");
  EXPECT_EQ(request.generation.transfer.remote_bootstrap_addr, "http://[::1]:8998");
  EXPECT_EQ(request.generation.transfer.remote_engine_id, "p0");
  EXPECT_EQ(request.generation.cache_salt, "s");
}

TEST(SimOpenAi, ReadsAChatAndItsDefaults) {
  const auto parsed = parse_chat(kChat, kContext);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed.value().generation.prompt, encode_chat({{"system", "be short"}, {"user", "h\xc3\xa9y"}}));
  EXPECT_EQ(parsed.value().generation.sampling.max_tokens, 5u);
  EXPECT_EQ(parsed.value().generation.sampling.logprobs, 2u);
  EXPECT_EQ(parsed.value().generation.sampling.seed, 99u);
  EXPECT_DOUBLE_EQ(parsed.value().generation.sampling.temperature, 1.0);
  const auto open_end = parse_chat(R"({"messages":[{"role":"user","content":"a"}]})", kContext);
  EXPECT_EQ(open_end.value().generation.sampling.max_tokens, 1000u - open_end.value().generation.prompt.size());
}

TEST(SimOpenAi, TakesPromptsAsTextOrTokenIds) {
  const auto prompt = [](std::string_view json) {
    auto parsed = parse_completion("{\"prompt\":" + std::string(json) + "}", kContext);
    return parsed.ok() ? parsed.value().generation.prompt : std::vector<Token>{};
  };
  EXPECT_EQ(prompt("[256,104,105]"), encode("hi"));
  EXPECT_EQ(prompt("[[256,104,105]]"), encode("hi"));
  EXPECT_EQ(prompt("[\"hi\"]"), encode("hi"));
  for (const char* wrong :
       {"[\"a\",\"b\"]", "[[1],[2]]", "[264]", "[-1]", "[1,\"a\"]", "[]", "[[]]", "{}", "1", "null"}) {
    EXPECT_TRUE(prompt(wrong).empty()) << wrong;
  }
}

TEST(SimOpenAi, RefusesByName) {
  const auto refusal = [](std::string_view fields) {
    const auto parsed = parse_completion("{\"prompt\":\"p\"," + std::string(fields) + "}", kContext);
    return parsed.ok() ? std::string() : parsed.error().message;
  };
  EXPECT_THAT(refusal(R"("n":2)"), HasSubstr("n must be 1"));
  EXPECT_THAT(refusal(R"("best_of":3)"), HasSubstr("best_of must be 1"));
  EXPECT_THAT(refusal(R"("max_tokens":0)"), HasSubstr("max_tokens"));
  EXPECT_THAT(refusal(R"("max_tokens":1,"min_tokens":2)"), HasSubstr("min_tokens must be at most max_tokens=1"));
  EXPECT_THAT(refusal(R"("temperature":-1)"), HasSubstr("temperature"));
  EXPECT_THAT(refusal(R"("temperature":"hot")"), HasSubstr("temperature must be a number"));
  EXPECT_THAT(refusal(R"("top_p":0)"), HasSubstr("top_p"));
  EXPECT_THAT(refusal(R"("logprobs":21)"), HasSubstr("logprobs"));
  EXPECT_THAT(refusal(R"("stop":[1])"), HasSubstr("stop must be"));
  EXPECT_THAT(refusal(R"("echo":true)"), HasSubstr("echo"));
  EXPECT_THAT(refusal(R"("logit_bias":{"5":1})"), HasSubstr("logit_bias"));
  EXPECT_THAT(refusal(R"("stream_options":{"include_usage":true})"), HasSubstr("stream_options needs stream"));
  EXPECT_THAT(refusal(R"("kv_transfer_params":{"do_remote_prefill":true})"), HasSubstr("transfer_id"));
  EXPECT_THAT(refusal(R"("kv_transfer_params":{"do_remote_prefill":true,"transfer_id":"x"})"),
              HasSubstr("remote_bootstrap_addr"));
  EXPECT_THAT(refusal(R"("kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":true})"),
              HasSubstr("at once"));
  EXPECT_EQ(refusal(R"("n":null,"logit_bias":{},"frequency_penalty":0,"top_k":-1,"kv_transfer_params":null)"), "");
  const auto model = parse_completion(R"({"model":"gpt","prompt":"p"})", kContext);
  EXPECT_EQ(http_status(model.error()), 404u);
}

TEST(SimOpenAi, FindsTheTransferOfARefusedBody) {
  const auto found = refused_transfer(R"({"model":"unknown","kv_transfer_params":{"do_remote_prefill":true,
    "transfer_id":"x","remote_bootstrap_addr":"http://a:1","remote_engine_id":"e"}})");
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->transfer_id, "x");
  EXPECT_FALSE(refused_transfer(R"({"kv_transfer_params":{"do_remote_decode":true,"transfer_id":"x"}})").has_value());
  EXPECT_FALSE(refused_transfer("nonsense").has_value());
}

// Damaged bodies end in a request or an Error, never in anything else; a request that is read is one that makes sense.
TEST(SimOpenAi, SurvivesDamagedBodies) {
  SeededRandom random(17);
  size_t accepted = 0;
  for (size_t round = 0; round < 20000; ++round) {
    std::string body(random.below(2) == 0 ? kFull : kChat);
    for (size_t i = 0; i <= random.below(4); ++i) {
      const size_t at = random.below(body.size());
      switch (random.below(4)) {
        case 0:
          body[at] = static_cast<char>(random.next());
          break;
        case 1:
          body.erase(at, random.below(12));
          break;
        case 2:
          body.insert(at, body.substr(random.below(body.size()), random.below(20)));
          break;
        default:
          body.insert(at, std::string(1 + random.below(40), "[{9\"-e"[random.below(6)]));
      }
      if (body.empty()) body = "{";
    }
    for (const auto& parsed : {parse_completion(body, kContext), parse_chat(body, kContext)}) {
      if (!parsed.ok()) {
        ASSERT_FALSE(parsed.error().message.empty());
        continue;
      }
      ++accepted;
      ASSERT_FALSE(parsed.value().generation.prompt.empty());
      ASSERT_GE(parsed.value().generation.sampling.max_tokens, 1u);
    }
    refused_transfer(body);
  }
  EXPECT_GT(accepted, 1000u);
}

// Reads JSON that this module wrote.
class Json {
 public:
  explicit Json(const std::string& text) : padded_(text) { EXPECT_EQ(parser_.parse(padded_).get(root_), 0) << text; }
  simdjson::dom::element at(std::string_view pointer) const {
    simdjson::dom::element found;
    EXPECT_EQ(root_.at_pointer(pointer).get(found), simdjson::SUCCESS) << pointer;
    return found;
  }
  std::string text(std::string_view pointer) const { return std::string(std::string_view(at(pointer))); }
  int64_t number(std::string_view pointer) const { return int64_t(at(pointer)); }

 private:
  simdjson::padded_string padded_;
  simdjson::dom::parser parser_;
  simdjson::dom::element root_;
};

GenerationUpdate update(Token token, std::string text) {
  return {.token = SampledToken{token, -0.25f, {{token, -0.25f}, {'q', -1.5f}}}, .text = std::move(text), .end = {}};
}
GenerationUpdate last_update(Token token, std::string text, FinishReason reason) {
  GenerationUpdate last = update(token, std::move(text));
  last.end = GenerationEnd{.reason = reason, .error = {}, .prompt_tokens = 5, .cached_tokens = 4, .answer_tokens = 2};
  return last;
}

std::vector<std::string> split_events(const std::string& stream) {
  std::vector<std::string> events;
  size_t at = 0;
  for (size_t end = 0; (end = stream.find("\n\n", at)) != std::string::npos; at = end + 2) {
    EXPECT_EQ(stream.substr(at, 6), "data: ");
    events.push_back(stream.substr(at + 6, end - at - 6));
  }
  EXPECT_EQ(at, stream.size());
  return events;
}

const ResponseHead kHead{.id = "cmpl-1", .model = "kvferry-sim", .created = 1700000000};

TEST(SimOpenAi, WritesACompletion) {
  CompletionRequest request;
  request.generation.sampling.logprobs = 2;
  request.return_token_ids = true;
  CompletionFormatter formatter(request, kHead);
  formatter.collect(update('"', "\""));
  formatter.collect(last_update('\n', "\n", FinishReason::length));
  const Json json(formatter.response());
  EXPECT_EQ(json.text("/object"), "text_completion");
  EXPECT_EQ(json.text("/choices/0/text"), "\"\n");
  EXPECT_EQ(json.text("/choices/0/finish_reason"), "length");
  EXPECT_EQ(json.number("/choices/0/token_ids/1"), 10);
  EXPECT_EQ(double(json.at("/choices/0/logprobs/token_logprobs/0")), -0.25);
  EXPECT_EQ(double(json.at("/choices/0/logprobs/top_logprobs/0/q")), -1.5);
  EXPECT_EQ(json.number("/choices/0/logprobs/text_offset/1"), 1);
  EXPECT_EQ(json.number("/usage/total_tokens"), 7);
  EXPECT_EQ(json.number("/usage/prompt_tokens_details/cached_tokens"), 4);
}

TEST(SimOpenAi, WritesAChatAndKeepsBrokenBytesOutOfTheJson) {
  CompletionRequest request;
  request.chat = true;
  request.generation.sampling.logprobs = 1;
  CompletionFormatter formatter(request, kHead);
  formatter.collect(last_update(0xff, "a\xff\x01", FinishReason::stop));
  const Json json(formatter.response());
  EXPECT_EQ(json.text("/object"), "chat.completion");
  EXPECT_EQ(json.text("/choices/0/message/content"), "a\xef\xbf\xbd\x01");
  EXPECT_EQ(json.number("/choices/0/logprobs/content/0/bytes/0"), 0xff);
  EXPECT_EQ(json.text("/choices/0/logprobs/content/0/token"), "<0xFF>");
}

TEST(SimOpenAi, StreamsACompletionWithUsageAndDone) {
  CompletionRequest request;
  request.stream = request.include_usage = true;
  CompletionFormatter formatter(request, kHead);
  const auto first = split_events(formatter.events(update('h', "h")));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(Json(first[0]).text("/choices/0/text"), "h");
  EXPECT_TRUE(Json(first[0]).at("/choices/0/finish_reason").is_null());
  EXPECT_TRUE(formatter.events(update(0xe2, "")).empty());  // nothing to say yet
  const auto rest = split_events(formatter.events(last_update('i', "i", FinishReason::stop)));
  ASSERT_EQ(rest.size(), 3u);
  EXPECT_EQ(Json(rest[0]).text("/choices/0/finish_reason"), "stop");
  EXPECT_EQ(Json(rest[1]).number("/usage/completion_tokens"), 2);
  EXPECT_EQ(rest[2], "[DONE]");
}

TEST(SimOpenAi, StreamsAChatWithItsRoleFirst) {
  CompletionRequest request;
  request.chat = request.stream = true;
  CompletionFormatter formatter(request, kHead);
  const auto events = split_events(formatter.events(update('h', "h")));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(Json(events[0]).text("/choices/0/delta/role"), "assistant");
  EXPECT_EQ(Json(events[1]).text("/choices/0/delta/content"), "h");
  EXPECT_EQ(Json(events[1]).text("/object"), "chat.completion.chunk");
}

TEST(SimOpenAi, ErrorsHaveOpenAisShapeAlsoInAStream) {
  const Error error{ErrorCode::gone, "the parcel is gone", "lease \"expired\"", "p0", ""};
  const Json json(format_error(error));
  EXPECT_THAT(json.text("/error/message"), HasSubstr("lease \"expired\""));
  EXPECT_EQ(json.text("/error/type"), "InternalServerError");
  EXPECT_EQ(json.number("/error/code"), 500);
  CompletionRequest request;
  request.stream = true;
  CompletionFormatter formatter(request, kHead);
  GenerationUpdate failed;
  failed.end = GenerationEnd{.reason = FinishReason::error, .error = error};
  const auto events = split_events(formatter.events(failed));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(Json(events[0]).number("/error/code"), 500);
}

TEST(SimOpenAi, ListsItsModel) {
  const Json json(format_models("kvferry-sim", 4096, 3));
  EXPECT_EQ(json.text("/data/0/id"), "kvferry-sim");
  EXPECT_EQ(json.number("/data/0/max_model_len"), 4096);
}

}  // namespace
}  // namespace kvferry::sim
