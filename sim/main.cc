#include <fmt/format.h>

#include <chrono>
#include <cstdio>

#include "sim/model.h"
#include "sim/openai.h"
#include "sim/options.h"
#include "sim/program.h"
#include "sim/serving.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

CompletionRequest local_request(const SimOptions& options) {
  CompletionRequest request;
  request.model = options.model_name;
  request.return_token_ids = true;
  request.generation.prompt = encode(*options.generate);
  request.generation.sampling = options.sampling;
  return request;
}

// Prints the answer of one prompt as it comes, or its response at the end.
Status generate(const SimOptions& options) {
  KVF_ASSIGN_OR_RETURN(const auto model, Model::create(options.model, options.tp, options.serving.scheduler.blocks));
  const SystemClock clock;
  KVF_ASSIGN_OR_RETURN(const auto serving, Serving::create(options.serving, *model, clock, nullptr));
  const CompletionRequest request = local_request(options);
  const ResponseHead head{
      .id = "cmpl-local",
      .model = options.model_name,
      .created = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                     .count()};
  CompletionFormatter formatter(request, head);
  std::optional<GenerationEnd> end;
  const TimePoint start = clock.now();
  TimePoint first = start;
  serving->submit(request.generation, [&](const GenerationUpdate& update) {
    if (first == start) first = clock.now();
    formatter.collect(update);
    if (!options.json) std::fputs(update.text.c_str(), stdout);
    end = update.end;
  });
  while (!end) serving->step_on_loop();
  if (end->error) return *end->error;
  std::fputs(options.json ? (formatter.response() + "\n").c_str() : "\n", stdout);
  const double decode = seconds(clock.now() - first);
  fmt::print(stderr, "{} prompt tokens, first token after {:.0f} ms; {} tokens, {:.0f} a second\n", end->prompt_tokens,
             seconds(first - start) * 1e3, end->answer_tokens,
             end->answer_tokens > 1 ? static_cast<double>(end->answer_tokens - 1) / decode : 0.0);
  return {};
}

int run(int argc, const char* const* argv) {
  const ParsedOptions parsed = parse_options(argc, argv, Environment::of_process());
  if (!parsed.options) {
    std::fputs(parsed.message.c_str(), parsed.exit_code == 0 ? stdout : stderr);
    return parsed.exit_code;
  }
  const SimOptions& options = *parsed.options;
  if (const Status status = options.generate ? generate(options) : serve(options); !status.ok()) {
    fmt::print(stderr, "kvferry-sim: {}\n", status.error().to_string());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace kvferry::sim

int main(int argc, char** argv) {
  return kvferry::sim::run(argc, argv);
}
