// Any bytes as a request body: a request that makes sense or an Error, and its formatting does not fall over either.

#include <cstdint>

#include "common/check.h"
#include "sim/openai.h"

namespace kvferry::sim {
namespace {

void check(const Result<CompletionRequest>& parsed) {
  if (!parsed.ok()) {
    KVF_CHECK(!format_error(parsed.error()).empty());
    return;
  }
  const GenerationRequest& generation = parsed.value().generation;
  KVF_CHECK(!generation.prompt.empty() && generation.sampling.max_tokens >= 1);
  KVF_CHECK(generation.role == KvRole::none || !generation.transfer.transfer_id.empty());
}

}  // namespace
}  // namespace kvferry::sim

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvferry::sim;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const ParseContext context{.model = "m", .max_model_len = 1000, .seed = 1};
  check(parse_completion(body, context));
  check(parse_chat(body, context));
  refused_transfer(body);
  TextAssembler text({"a", "bc"});
  std::string out = text.add(body);
  out += text.finish();
  return 0;
}
