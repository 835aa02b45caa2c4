#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "bootstrap/fan_out.h"
#include "bootstrap/service.h"
#include "common/text.h"
#include "http/json.h"

// DELETE /v1/parcels/{id}: at a worker, or at the base for all ranks of a namespace.

namespace kvferry::bootstrap {
namespace {

namespace asio = boost::asio;

http::Response reply(int status, std::string body) {
  http::Response response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

std::string rank_json(const Registration& worker) {
  return fmt::format(R"({{"engine_id":{},"dp_rank":{},"tp_rank":{},"pp_rank":{}}})", json_quote(worker.engine_id),
                     worker.rank.dp, worker.rank.tp, worker.rank.pp);
}

// Whom to tell, and who cannot be told (vLLM's own workers have no server of ours).
struct Audience {
  std::vector<Registration> remote;
  std::vector<http::Url> urls;  // of `remote`
  std::vector<Registration> mute;
};

Audience audience_of(const std::vector<const Registration*>& workers, uint64_t own_incarnation) {
  Audience audience;
  for (const Registration* worker : workers) {
    if (own_incarnation != 0 && worker->incarnation == own_incarnation) continue;  // that is this process
    auto url = http::parse_url(worker->http);
    if (worker->http.empty() || !url.ok()) {
      audience.mute.push_back(*worker);
      continue;
    }
    audience.remote.push_back(*worker);
    audience.urls.push_back(std::move(*url));
  }
  return audience;
}

}  // namespace

// A release that was handed to the engine. On the loop; only its answer comes from elsewhere.
struct Service::Question {
  Question(asio::io_context& loop, Duration limit) : timer(loop, limit) {}
  asio::steady_timer timer;
  bool answered = false;
  ReleaseState answer = ReleaseState::pending;
};

asio::awaitable<http::Response> Service::release(const http::Request& request, const Path& path) {
  const auto flag = request.query("force");
  const bool force = flag && *flag != "0" && *flag != "false";
  if (releases_ >= config_.max_releases) co_return http::error_response(503, "too many releases at once");
  ++releases_;
  const bool only_here = request.query("scope") == "rank" || !config_.keeps_directory;
  http::Response response;
  if (only_here) {
    response = co_await release_here(path.id, force);
  } else {
    response = co_await release_everywhere(path.space, path.id, force);
  }
  --releases_;
  co_return response;
}

asio::awaitable<http::Response> Service::release_here(const std::string& id, bool force) {
  if (parcels_ == nullptr) co_return http::error_response(404, "no parcels are kept here");
  const ReleaseState state = co_await answer_of(ask_control(id, force));
  switch (state) {
    case ReleaseState::acknowledged:
      co_return reply(200, R"({"status":"released"})");
    case ReleaseState::unknown:
      co_return reply(200, R"({"status":"unknown"})");
    case ReleaseState::pending:
      break;
  }
  co_return reply(202, R"({"status":"pending"})");
}

asio::awaitable<http::Response> Service::release_everywhere(const std::string& space, const std::string& id,
                                                            bool force) {
  directory_.expire(deadlines_.now());
  Audience audience = audience_of(directory_.workers(space), parcels_ != nullptr ? own_incarnation_ : 0);
  if (parcels_ == nullptr && audience.remote.empty()) {
    if (!audience.mute.empty()) co_return http::error_response(404, "these workers keep no parcels");
    co_return http::error_response(503, "no worker is registered here");
  }
  std::shared_ptr<Question> question;  // goes on while the others are told
  if (parcels_ != nullptr) question = ask_control(id, force);
  const FanOut work{id, force, config_.token, std::move(audience.urls), config_.release_limit};
  const std::vector<bool> acknowledged = co_await release_at_all(loop_, deadlines_, work);
  ReleaseState here = ReleaseState::unknown;
  if (question) here = co_await answer_of(question);

  std::string waiting;
  const auto add = [&](const std::string& who) { waiting += (waiting.empty() ? "" : ",") + who; };
  if (here == ReleaseState::pending) add(R"({"this_worker":true})");
  for (size_t i = 0; i < acknowledged.size(); ++i) {
    if (!acknowledged[i]) add(rank_json(audience.remote[i]));
  }
  for (const Registration& worker : audience.mute) add(rank_json(worker));
  if (!waiting.empty()) co_return reply(202, R"({"status":"pending","waiting":[)" + waiting + "]}");
  const size_t ranks = acknowledged.size() + (parcels_ != nullptr ? 1 : 0);
  co_return reply(200, fmt::format(R"({{"status":"released","ranks":{}}})", ranks));
}

std::shared_ptr<Service::Question> Service::ask_control(const std::string& id, bool force) {
  const auto question = std::make_shared<Question>(loop_, config_.release_limit);
  // Only the loop looks behind the weak pointer.
  const auto done = [mailbox = mailbox_, asked = std::weak_ptr(question)](ReleaseState state) {
    mailbox->post([asked, state] {
      if (const auto waiting = asked.lock()) {
        waiting->answered = true;
        waiting->answer = state;
        waiting->timer.cancel();
      }
    });
  };
  parcels_->release(id, force, done);
  return question;
}

asio::awaitable<ReleaseState> Service::answer_of(std::shared_ptr<Question> question) {
  if (!question->answered) co_await question->timer.async_wait(asio::as_tuple(asio::use_awaitable));
  co_return question->answer;
}

}  // namespace kvferry::bootstrap
