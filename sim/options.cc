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
      ->transform(CLI::CheckedTransformer(roles, CLI::ignore_case))
      ->option_text("prefill, decode or both");  // CLI11 would show the values as characters
  app.add_option("--host", options.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", options.port, "Port of the OpenAI API")->capture_default_str();
  app.add_option("--served-model-name", options.model_name, "Name that requests call the model by")
      ->capture_default_str();
}

// A duration as text: "30", "1.5s", "200ms".
void add_duration(CLI::App& app, const char* name, Duration& value, const char* help) {
  app.add_option_function<std::string>(
      name,
      [&value](const std::string& text) {
        const auto parsed = parse_duration(text);
        if (!parsed.ok()) throw CLI::ValidationError(parsed.error().to_string());
        value = *parsed;
      },
      help);
}

void add_handover_flags(CLI::App& app, SimOptions& options) {
  app.add_flag("!--no-handover", options.hands_over, "Neither give nor take KV: one server that does it all");
  app.add_option("--bootstrap-port", options.bootstrap_port, "Rank r of a prefiller serves bootstrap on this port + r")
      ->capture_default_str();
  app.add_option("--bootstrap-url", options.bootstrap_url, "Register at this bootstrap server instead");
  app.add_option("--fabric", options.engine.fabrics, "Fabrics that may be used, best first")->delimiter(',');
  app.add_flag("--allow-open", options.engine.allow_open, "Engines may listen where strangers reach them");
  add_duration(app, "--lease", options.lease,
               "How long KV is held for a reader; default: $VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT or 480 s");
  add_duration(app, "--kv-load-timeout", options.serving.load_timeout,
               "Longest wait for a prefiller's KV; default 60 s");
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
      ->transform(CLI::CheckedTransformer(policies, CLI::ignore_case))
      ->option_text("fail or recompute");
}

void add_limit_flags(CLI::App& app, SimOptions& options) {
  add_duration(app, "--request-timeout", options.request_timeout, "Longest life of a request; default 600 s");
  add_duration(app, "--drain-limit", options.drain_limit, "How long SIGTERM lets requests finish; default 5 s");
  app.add_option_function<std::string>(
      "--log-level",
      [&options](const std::string& name) {
        const auto level = parse_log_level(name);
        if (!level.ok()) throw CLI::ValidationError(level.error().to_string());
        options.log_level = *level;
      },
      "debug, info, warning, error, off");
}

// What the environment says; flags win over it.
Status read_environment(const Environment& environment, SimOptions& options) {
  KVF_ASSIGN_OR_RETURN(options.engine, EngineConfig::from_environment(environment));
  KVF_ASSIGN_OR_RETURN(options.lease, environment.duration("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", options.lease));
  KVF_ASSIGN_OR_RETURN(const int64_t port, environment.integer("VLLM_MOONCAKE_BOOTSTRAP_PORT", 8998, 1, 65535));
  options.bootstrap_port = static_cast<uint16_t>(port);
  return {};
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

ParsedOptions parse_options(int argc, const char* const* argv, const Environment& environment) {
  SimOptions options;
  if (const Status status = read_environment(environment, options); !status.ok()) {
    return {.options = std::nullopt, .message = status.error().to_string() + "\n", .exit_code = 2};
  }
  options.sampling.temperature = 0;
  options.sampling.max_tokens = 64;
  CLI::App app(
      "An OpenAI-compatible server around a small real transformer: kvferry's stand-in for vLLM without a GPU");
  add_server_flags(app, options);
  add_handover_flags(app, options);
  add_limit_flags(app, options);
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
