#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>

#include "http/client.h"
#include "http/json.h"
#include "proxy/core.h"

// A wrong set-up is silent: the decoder just computes the prompt again. The canary sends a prompt that nobody has seen
// through the front door, and compares what the backends count: a prefiller must have computed it, and a decoder must
// have got it from elsewhere.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

// As vLLM counts them: prompt tokens in all, and those that a decoder got from elsewhere.
constexpr std::string_view kPromptMetric = "vllm:prompt_tokens_total";
constexpr std::string_view kMovedMetric = "vllm:external_prefix_cache_hits_total";

// The sum of a metric over its label sets.
double metric_sum(std::string_view page, std::string_view name) {
  double sum = 0;
  while (!page.empty()) {
    const size_t end = std::min(page.find('\n'), page.size());
    const std::string_view line = page.substr(0, end);
    page.remove_prefix(std::min(end + 1, page.size()));
    const bool named =
        line.starts_with(name) && line.size() > name.size() && (line[name.size()] == '{' || line[name.size()] == ' ');
    const size_t space = line.rfind(' ');
    double value = 0;
    if (!named || std::from_chars(line.data() + space + 1, line.data() + line.size(), value).ec != std::errc())
      continue;
    sum += value;
  }
  return sum;
}

}  // namespace

asio::awaitable<void> Proxy::Core::run_canary() {
  asio::steady_timer timer(loop);
  while (!draining) {
    timer.expires_after(config.canary_interval);
    const auto [stopped] = co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
    if (stopped || draining) co_return;
    const double computed_before = co_await total_of(Role::prefill, std::string(kPromptMetric));
    const double moved_before = co_await total_of(Role::decode, std::string(kMovedMetric));
    const bool answered = co_await send_canary();
    if (!answered) {
      metrics.canary_failed.add();
      log->warning("canary: its request failed");
      continue;
    }
    const double computed_after = co_await total_of(Role::prefill, std::string(kPromptMetric));
    const double moved_after = co_await total_of(Role::decode, std::string(kMovedMetric));
    const double computed = computed_after - computed_before, moved = moved_after - moved_before;
    const bool good = computed > 0 && moved > 0;
    (good ? metrics.canary_moved : metrics.canary_not_moved).add();
    if (!good) {
      log->warning(
          "canary: no KV moved ({} prompt tokens computed by prefillers, {} fetched by decoders); is the connector set "
          "up on both sides?",
          computed, moved);
    }
  }
}

// A metric over all backends of a role.
asio::awaitable<double> Proxy::Core::total_of(Role role, std::string name) {
  double total = 0;
  const std::vector<std::shared_ptr<Backend>> all = backends.of(role);
  for (const auto& backend : all) {
    http::Fetch scrape;
    scrape.url = backend->url;
    scrape.target = "/metrics";
    const auto page = co_await http::fetch(loop, deadlines, std::move(scrape));
    if (page.ok()) total += metric_sum(page->body, name);
  }
  co_return total;
}

asio::awaitable<bool> Proxy::Core::send_canary() {
  std::string prompt;
  for (int i = 0; i < 128; ++i) prompt.append(std::to_string(random.below(100000))).append(" ");
  http::Fetch request;
  request.method = "POST";
  request.url.host = config.host == "0.0.0.0" ? "127.0.0.1" : config.host == "::" ? "::1" : config.host;
  request.url.port = front->port();
  request.target = "/v1/completions";
  request.headers.add("Content-Type", "application/json");
  if (!config.require_key.empty()) request.headers.add("Authorization", "Bearer " + config.require_key);
  request.body = R"({"model":)";
  http::append_json_string(request.body, config.canary_model);
  request.body.append(R"(,"max_tokens":1,"prompt":)");
  http::append_json_string(request.body, prompt);
  request.body.append("}");
  request.timeout = std::chrono::seconds(60);
  const auto answer = co_await http::fetch(loop, deadlines, std::move(request));
  co_return answer.ok() && answer->head.status == 200;
}

}  // namespace kvferry::proxy
