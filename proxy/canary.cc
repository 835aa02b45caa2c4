#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <span>

#include "http/client.h"
#include "http/json.h"
#include "proxy/core.h"

// A wrong set-up is silent: the decoder just computes the prompt again. The canary asks for a prompt that nobody has
// seen, as a client would, and compares what the backends count: a prefiller must have computed it, and a decoder must
// have got it from elsewhere.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

constexpr Duration kCanaryLimit = std::chrono::seconds(60);

// Prompt tokens in all, and what a decoder got from elsewhere: as vLLM counts them, and kvferry-sim.
constexpr std::array<std::string_view, 2> kPromptMetrics = {"vllm:prompt_tokens_total",
                                                            "kvferry_sim_prompt_tokens_total"};
constexpr std::array<std::string_view, 2> kMovedMetrics = {"vllm:external_prefix_cache_hits_total",
                                                           "kvferry_sim_fetched_bytes_total"};

// A client inside of this process that looks at the status alone. It needs no key, and no certificate.
class CanaryWriter final : public http::ResponseWriter {
 public:
  bool succeeded() const { return status_ == 200 && ended_; }
  void leave() {
    gone_ = true;
    if (const auto notice = std::exchange(gone_notice_, nullptr)) notice();
  }

  asio::awaitable<Status> send(http::Response response) override {
    status_ = response.status;
    ended_ = true;
    co_return Status();
  }
  asio::awaitable<Status> start(int status, const http::Headers&) override {
    status_ = status;
    co_return Status();
  }
  asio::awaitable<Status> write(std::string_view) override { co_return Status(); }
  asio::awaitable<Status> finish() override {
    ended_ = true;
    co_return Status();
  }
  asio::awaitable<Status> raw(std::string_view bytes) override {
    const auto taken = raw_now(bytes);
    if (!taken.ok()) co_return taken.error();
    co_return Status();
  }
  Result<bool> raw_now(std::string_view bytes) override {
    if (gone_) return Error{ErrorCode::peer_lost, "the canary has left", "", "", ""};
    if (status_ == 0) status_ = bytes.starts_with("HTTP/1.1 200 ") ? 200 : -1;
    return true;
  }
  void raw_end(bool) override { ended_ = true; }
  bool started() const override { return status_ != 0; }
  bool keep_alive() const override { return true; }
  bool gone() const override { return gone_; }
  void on_gone(std::function<void()> notice) override {
    gone_notice_ = std::move(notice);
    if (gone_ && gone_notice_) leave();
  }

 private:
  int status_ = 0;
  bool ended_ = false;
  bool gone_ = false;
  std::function<void()> gone_notice_;
};

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

// What the backends counted from one time to the other. None where one could not be read, since the request may have
// gone to that one, unless the others have counted something.
std::optional<double> growth(const std::map<std::string, std::optional<double>>& before,
                             const std::map<std::string, std::optional<double>>& after) {
  double sum = 0;
  bool whole = !after.empty();
  for (const auto& [name, count] : after) {
    const auto found = before.find(name);
    const std::optional<double> earlier = found == before.end() ? std::nullopt : found->second;
    if (!count || !earlier)
      whole = false;
    else
      sum += *count < *earlier ? *count : *count - *earlier;  // one that was started again counts from nothing
  }
  return whole || sum > 0 ? std::optional(sum) : std::nullopt;
}

}  // namespace

asio::awaitable<void> Proxy::Core::run_canary() {
  while (!draining) {
    const bool going_on = co_await background.sleep(config.canary_interval);
    if (!going_on || draining) co_return;
    const Counts computed_before = co_await counts_of(Role::prefill, kPromptMetrics);
    const Counts moved_before = co_await counts_of(Role::decode, kMovedMetrics);
    if (draining) co_return;
    const bool answered = co_await send_canary();
    if (draining) co_return;
    const auto computed = growth(computed_before, co_await counts_of(Role::prefill, kPromptMetrics));
    const auto moved = growth(moved_before, co_await counts_of(Role::decode, kMovedMetrics));
    if (!answered || !computed || !moved) {
      metrics.canary_failed.add();
      log->warning("canary: {}", answered ? "the backends' metrics cannot be read" : "its request failed");
      continue;
    }
    const bool good = *computed > 0 && *moved > 0;
    (good ? metrics.canary_moved : metrics.canary_not_moved).add();
    if (!good) {
      log->warning(
          "canary: no KV moved ({} prompt tokens computed by prefillers, {} tokens or bytes fetched by decoders); is "
          "the connector set up on both sides?",
          *computed, *moved);
    }
  }
}

// These metrics of each backend of a role; none where they cannot be read.
asio::awaitable<Proxy::Core::Counts> Proxy::Core::counts_of(Role role, std::span<const std::string_view> names) {
  Counts counts;
  const std::vector<std::shared_ptr<Backend>> all = backends.of(role);
  for (const auto& backend : all) {
    http::Fetch scrape;
    scrape.url = backend->url;
    scrape.target = "/metrics";
    const auto page = co_await http::fetch(loop, deadlines, std::move(scrape));
    std::optional<double>& count = counts[backend->name];
    if (!page.ok() || page->head.status != 200) continue;
    count = 0;
    for (const std::string_view name : names) *count += metric_sum(page->body, name);
  }
  co_return counts;
}

asio::awaitable<bool> Proxy::Core::send_canary() {
  std::string prompt;
  for (int i = 0; i < 128; ++i) prompt.append(std::to_string(random.below(100000))).append(" ");
  http::Request request;
  request.method = "POST";
  request.target = "/v1/completions";
  request.remote = "canary";
  request.headers.add("Content-Type", "application/json");
  request.body = R"({"model":)";
  http::append_json_string(request.body, config.canary_model);
  request.body.append(R"(,"max_tokens":1,"prompt":)");
  http::append_json_string(request.body, prompt);
  request.body.append("}");
  request.body.reserve(request.body.size() + http::kBodyPadding);
  CanaryWriter writer;
  http::Deadline limit(deadlines, [&writer] { writer.leave(); });
  limit.set_in(kCanaryLimit);
  end_canary = [&writer] { writer.leave(); };
  co_await forward(request, writer);
  end_canary = nullptr;
  co_return writer.succeeded();
}

}  // namespace kvferry::proxy
