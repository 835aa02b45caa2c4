#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "bootstrap/fan_out.h"
#include "bootstrap/service.h"
#include "common/text.h"
#include "http/json.h"

// GET and DELETE /v1/parcels/{id}: at a worker, or, DELETE, at the base for all ranks of a namespace.

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

// What the engine was asked. On the loop; only its answer comes from elsewhere.
template <class Answer>
struct Service::Question {
  Question(asio::io_context& loop, Duration limit) : timer(loop, limit) {}

  // What the engine calls, from any thread. Only the loop looks behind the weak pointer.
  static auto answering(const std::shared_ptr<Question>& question, const std::shared_ptr<Mailbox>& mailbox) {
    return [mailbox, asked = std::weak_ptr(question)](Answer given) {
      mailbox->post([asked, given = std::move(given)] {
        if (const auto waiting = asked.lock()) {
          waiting->answer = given;
          waiting->timer.cancel();
        }
      });
    };
  }
  // Nothing when the limit has passed.
  static asio::awaitable<std::optional<Answer>> wait(std::shared_ptr<Question> question) {
    if (!question->answer) co_await question->timer.async_wait(asio::as_tuple(asio::use_awaitable));
    co_return question->answer;
  }

  asio::steady_timer timer;
  std::optional<Answer> answer;
};

asio::awaitable<http::Response> Service::describe_parcel(const std::string& id) {
  if (parcels_ == nullptr) co_return http::error_response(404, "no parcels are kept here");
  using Asked = Question<std::optional<ParcelReport>>;
  const auto question = std::make_shared<Asked>(loop_, config_.release_limit);
  parcels_->state(id, Asked::answering(question, mailbox_));
  const std::optional<std::optional<ParcelReport>> answer = co_await Asked::wait(question);
  if (!answer) co_return http::error_response(503, "the engine does not answer");
  if (!*answer) co_return http::error_response(404, "no such parcel");
  const ParcelReport& report = **answer;
  co_return reply(200, fmt::format(R"({{"transfer_id":{},"state":{},"age_s":{:.3f},"readers":{}}})", json_quote(id),
                                   json_quote(report.state), seconds(report.age), report.readers));
}

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
  const auto question = ask_release(id, force);
  const std::optional<ReleaseState> state = co_await Question<ReleaseState>::wait(question);
  switch (state.value_or(ReleaseState::pending)) {
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
  const bool gathering = parcels_ == nullptr && deadlines_.now() < after(began_, config_.gathering);
  std::shared_ptr<Question<ReleaseState>> question;  // goes on while the others are told
  if (parcels_ != nullptr) question = ask_release(id, force);
  const FanOut work{id, force, config_.token, std::move(audience.urls), config_.release_limit, config_.trust};
  const std::vector<bool> acknowledged = co_await release_at_all(loop_, deadlines_, work);
  std::optional<ReleaseState> here = ReleaseState::unknown;
  if (question) here = co_await Question<ReleaseState>::wait(question);

  std::string waiting;
  const auto add = [&](const std::string& who) { waiting += (waiting.empty() ? "" : ",") + who; };
  if (here.value_or(ReleaseState::pending) == ReleaseState::pending) add(R"({"this_worker":true})");
  if (gathering) add(R"({"gathering":true})");
  for (size_t i = 0; i < acknowledged.size(); ++i) {
    if (!acknowledged[i]) add(rank_json(audience.remote[i]));
  }
  for (const Registration& worker : audience.mute) add(rank_json(worker));
  if (!waiting.empty()) co_return reply(202, R"({"status":"pending","waiting":[)" + waiting + "]}");
  const size_t ranks = acknowledged.size() + (parcels_ != nullptr ? 1 : 0);
  co_return reply(200, fmt::format(R"({{"status":"released","ranks":{}}})", ranks));
}

std::shared_ptr<Service::Question<ReleaseState>> Service::ask_release(const std::string& id, bool force) {
  auto question = std::make_shared<Question<ReleaseState>>(loop_, config_.release_limit);
  parcels_->release(id, force, Question<ReleaseState>::answering(question, mailbox_));
  return question;
}

}  // namespace kvferry::bootstrap
