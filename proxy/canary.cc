#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>

#include "http/client.h"
#include "http/json.h"
#include "proxy/core.h"

// A wrong set-up is silent: the decoder just computes the prompt again. The canary sends a prompt that nobody has seen
// through the front door and asks the decoders afterwards how many prompt tokens they computed themselves.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

// Prompt tokens that a decoder got from elsewhere, as vLLM counts them.
constexpr std::string_view kMovedMetric = "vllm:external_prefix_cache_hits_total";

// The sum of a metric over its label sets; nothing if it is not there.
std::optional<double> metric_sum(std::string_view page, std::string_view name) {
  std::optional<double> sum;
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
    sum = sum.value_or(0) + value;
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
    std::string prompt;
    for (int i = 0; i < 128; ++i) prompt.append(std::to_string(random.below(100000))).append(" ");
    const bool moved = co_await send_canary(std::move(prompt));
    (moved ? metrics.canary_moved : metrics.canary_not_moved).add();
    if (!moved) log->warning("canary: no KV moved to a decoder; is the connector set up on both sides?");
  }
}

asio::awaitable<bool> Proxy::Core::send_canary(std::string prompt) {
  std::vector<double> before;
  const std::vector<std::shared_ptr<Backend>> decoders = backends.of(Role::decode);
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < decoders.size(); ++i) {
      http::Fetch scrape;
      scrape.url = decoders[i]->url;
      scrape.target = "/metrics";
      const auto page = co_await http::fetch(loop, deadlines, std::move(scrape));
      const double hits = page.ok() ? metric_sum(page->body, kMovedMetric).value_or(0) : 0;
      if (round == 0) {
        before.push_back(hits);
      } else if (hits > before[i]) {
        co_return true;
      }
    }
    if (round == 1) break;
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
    if (!answer.ok() || answer->head.status != 200) co_return false;
  }
  co_return false;
}

}  // namespace kvferry::proxy
