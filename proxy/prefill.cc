#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "proxy/exchange.h"

// The prefiller's leg.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

constexpr size_t kMaxPrefillAnswer = 64 << 20;
constexpr Duration kPollForPrefiller = std::chrono::milliseconds(25);

bool clients_fault(int status) {
  return status >= 400 && status < 500 && status != 408 && status != 429;
}

}  // namespace

// Tries prefillers until one has done it; failed: none could.
asio::awaitable<Exchange::Step> Exchange::prefill(Endpoint endpoint, const RequestFacts& facts) {
  for (int tries = 0; tries < kAttempts && !stop(); ++tries) {
    const Router::Question question{facts.prompt, session_, now(), failed_prefiller_};
    auto choice = context_.router.choose(Role::prefill, question);
    if (!choice) {
      const bool came = co_await prefiller_comes();
      if (came) --tries;
      if (!came) co_return stop() ? Step::done : Step::failed;
      continue;
    }
    const Step step = co_await prefill_on(endpoint, facts, std::move(*choice));
    if (step != Step::failed) co_return step;
    parcel_.release();
    failed_prefiller_ = prefiller_.get();
  }
  co_return stop() ? Step::done : Step::failed;
}

// Where no decoder may compute the prompt, a prefiller that is being restarted is waited for.
asio::awaitable<bool> Exchange::prefiller_comes() {
  if (context_.config.local_prefill) co_return false;
  const TimePoint until = std::min(first_byte_due_, after(began_, context_.config.prefiller_wait));
  asio::steady_timer timer(context_.loop);
  while (!stop() && now() < until) {
    if (context_.backends.any_usable(Role::prefill, now())) co_return true;
    timer.expires_after(kPollForPrefiller);
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
  co_return false;
}

asio::awaitable<Exchange::Step> Exchange::prefill_on(Endpoint endpoint, const RequestFacts& facts, Choice choice) {
  prefiller_ = choice.backend;
  Backend& backend = *prefiller_;
  if (backend.bootstrap && (backend.suspect || backend.engine_ids.empty())) {
    const bool known = co_await context_.health.refresh(prefiller_);
    if (stop()) co_return Step::done;
    if (!known) {
      note_failure(backend, {ErrorCode::peer_lost, "its bootstrap server does not answer", "", backend.name, ""},
                   "prefill");
      co_return Step::failed;
    }
  }
  handover_ = {};
  handover_.transfer_id = "xfer-" + new_uuid();
  if (backend.bootstrap) {
    auto engine = backend.engine_ids.find(choice.dp_rank);
    if (engine == backend.engine_ids.end()) engine = backend.engine_ids.begin();  // known, so there is one
    choice.dp_rank = engine->first;
    handover_.bootstrap = backend.bootstrap->to_string();
    handover_.engine_id = engine->second;
  }
  dp_rank_ = choice.dp_rank;
  const std::string params = prefill_params(context_.config.dialect, handover_.transfer_id);
  const Spliced body = prefill_body(endpoint, facts, params);
  const std::string head = backend_head(backend, body.size, choice.dp_rank, true);
  const Busy busy(prefiller_, choice.tokens, false);
  const auto authorization = request_.headers.get("authorization");
  prefilled_ = {};
  parcel_ = context_.releases.hold(prefiller_, handover_.transfer_id, std::string(authorization.value_or("")));
  const TimePoint start = now();
  auto answered = co_await round_trip(prefiller_, head, body);
  prefill_time_ = now() - start;
  if (!answered.ok()) {
    note_failure(backend, answered.error(), "prefill");
    co_return stop() ? Step::done : Step::failed;
  }
  co_return co_await judge_prefill(std::move(*answered), prefiller_, choice.dp_rank);
}

asio::awaitable<Exchange::Step> Exchange::judge_prefill(http::ResponseHead head, std::shared_ptr<Backend> backend,
                                                        int dp_rank) {
  if (head.status < 300) parcel_.answered(handover_);
  auto body = co_await http::read_whole_body(*wire_, kMaxPrefillAnswer);
  if (!body.ok()) {
    wire_.reset();
    note_failure(*backend, body.error(), "prefill");
    co_return stop() ? Step::done : Step::failed;
  }
  context_.pool.give_back(*backend, std::move(wire_));
  context_.metrics.leg("prefill", head.status, head.status < 300 ? "ok" : "status", backend->name);
  if (clients_fault(head.status)) {
    backend->breaker.succeeded();
    cause_ = "refused_by_prefiller";
    status_ = head.status;
    http::Response response;
    response.status = head.status;
    response.body = std::move(*body);
    response.content_type = head.headers.get("content-type").value_or("application/json");
    response.headers.add("X-Request-Id", request_id_);
    (void)co_await writer_.send(std::move(response));
    co_return Step::done;
  }
  if (head.status >= 300) {
    backend->breaker.failed(now(), false);
    backend->suspect = true;
    fault_ = {head.status >= 500 || head.status == 429 ? head.status : 502, "the prefiller could not take the request"};
    cause_ = "status";
    co_return Step::failed;
  }
  backend->breaker.succeeded();
  prefilled_ = now();
  context_.metrics.prefill_seconds.observe(seconds(prefill_time_));
  if (context_.config.dialect == Dialect::nixl) {
    if (const auto answer = context_.scanner.scan(*body); answer.ok()) {
      if (const Member* params = answer->find("kv_transfer_params")) handover_.returned = params->value;
    }
  }
  if (backend->suspect && backend->bootstrap) {
    // Its connections were closed under way: perhaps it is another engine by now. A rank that its bootstrap server
    // does not know, since that was restarted, too, keeps the id it had.
    (void)co_await context_.health.refresh(backend);
    const auto engine = backend->engine_ids.find(dp_rank);
    if (engine != backend->engine_ids.end()) handover_.engine_id = engine->second;
  }
  parcel_.answered(handover_);
  co_return stop() ? Step::done : Step::next;
}

// Whether the prefiller has become another engine since it answered: what it published for this request is gone.
asio::awaitable<bool> Exchange::prefiller_restarted() {
  if (!prefiller_ || !prefiller_->bootstrap) co_return false;
  const bool known = co_await context_.health.refresh(prefiller_);
  if (!known) co_return false;
  const auto now_there = prefiller_->engine_ids.find(dp_rank_);
  co_return now_there != prefiller_->engine_ids.end() && now_there->second != handover_.engine_id;
}

}  // namespace kvferry::proxy
