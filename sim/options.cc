#include "sim/options.h"

#include <CLI/CLI.hpp>
#include <map>
#include <sstream>

namespace kvferry::sim {
namespace {

void add_server_flags(CLI::App& app, SimOptions& options) {
  const std::map<std::string, ServerRole> roles = {
      {"prefill", ServerRole::prefill}, {"decode", ServerRole::decode}, {"both", ServerRole::both}};
  app.add_option("--role", options.role, "What this server does: prefill, decode or both")
      ->transform(CLI::CheckedTransformer(roles, CLI::ignore_case));
  app.add_option("--host", options.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", options.port, "Port of the OpenAI API")->capture_default_str();
  app.add_option("--bootstrap-port", options.bootstrap_port, "Base port of the bootstrap servers")
      ->capture_default_str();
  app.add_option("--served-model-name", options.model_name, "Name that requests call the model by")
      ->capture_default_str();
}

void add_model_flags(CLI::App& app, SimOptions& options) {
  app.add_option("--weights-seed", options.model.seed, "Seed of the weights: another seed is another model")
      ->capture_default_str();
  app.add_option("--layers", options.model.layers, "Transformer layers")->capture_default_str();
  app.add_option("--tp,--tensor-parallel-size", options.tp, "Tensor parallel ranks: 1, 2, 4 or 8")
      ->capture_default_str();
  app.add_option("--block-size", options.model.block_size, "Tokens of one KV cache block")->capture_default_str();
  app.add_option("--num-blocks", options.serving.scheduler.blocks, "Blocks of the KV cache")->capture_default_str();
  app.add_option("--max-model-len", options.model.max_model_len, "Tokens of prompt and answer")->capture_default_str();
}

void add_serving_flags(CLI::App& app, SimOptions& options) {
  SchedulerConfig& scheduler = options.serving.scheduler;
  app.add_option("--max-num-seqs", scheduler.max_sequences, "Requests that run at once")->capture_default_str();
  app.add_option("--max-num-batched-tokens", scheduler.max_batched_tokens, "Tokens of one batch")
      ->capture_default_str();
  app.add_flag("!--no-prefix-cache", scheduler.prefix_cache, "Compute every prompt anew");
  const std::map<std::string, bool> policies = {{"fail", false}, {"recompute", true}};
  app.add_option("--kv-load-failure-policy", options.serving.recompute_failed_loads,
                 "What a request does whose KV cannot be loaded: fail or recompute")
      ->transform(CLI::CheckedTransformer(policies, CLI::ignore_case));
}

void add_generate_flags(CLI::App& app, SimOptions& options) {
  SamplingParams& sampling = options.sampling;
  const std::string group = "Local generation";
  app.add_option("--generate", options.generate, "Answer this prompt here and exit")->group(group);
  app.add_option("--max-tokens", sampling.max_tokens, "Tokens of the answer")->capture_default_str()->group(group);
  app.add_option("--temperature", sampling.temperature, "0 is greedy")->capture_default_str()->group(group);
  app.add_option("--top-p", sampling.top_p, "Share of the probability to draw from")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1.0))
      ->group(group);
  app.add_option("--seed", sampling.seed, "Seed of the sampling")->capture_default_str()->group(group);
  app.add_flag("--ignore-eos", sampling.ignore_eos, "Go on behind the end token")->group(group);
  app.add_option("--logprobs", sampling.logprobs, "Alternatives to report with --json")
      ->check(CLI::Range(size_t{0}, kMaxLogprobs))
      ->group(group);
  app.add_flag("--json", options.json, "Print the response of /v1/completions")->group(group);
}

}  // namespace

ParsedOptions parse_options(int argc, const char* const* argv) {
  SimOptions options;
  options.sampling.temperature = 0;
  options.sampling.max_tokens = 64;
  CLI::App app(
      "An OpenAI-compatible server around a small real transformer: kvferry's stand-in for vLLM without a GPU");
  add_server_flags(app, options);
  add_model_flags(app, options);
  add_serving_flags(app, options);
  add_generate_flags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    const int code = app.exit(error, out, out);
    return {.options = std::nullopt, .message = out.str(), .exit_code = code == 0 ? 0 : 2};
  }
  options.serving.scheduler.block_size = options.model.block_size;
  options.serving.scheduler.max_model_len = options.model.max_model_len;
  return {.options = std::move(options), .message = "", .exit_code = 0};
}

}  // namespace kvferry::sim
