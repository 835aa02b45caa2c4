#include "sim/face.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <chrono>
#include <deque>

#include "http/event.h"
#include "http/json.h"
#include "sim/metrics_page.h"

namespace kvferry::sim {
namespace {

namespace asio = boost::asio;

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

http::Response with_status(int status, std::string body) {
  http::Response response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

http::Response refusal(const Error& error) {
  return with_status(static_cast<int>(http_status(error)), format_error(error));
}

// A request that the server ended by itself was not answered.
void tell_of_shutdown(GenerationUpdate& update) {
  if (!update.end || update.end->reason != FinishReason::abort) return;
  update.end->reason = FinishReason::error;
  update.end->error = Error{ErrorCode::unavailable, "the server is shutting down", "", "", "sim"};
}

}  // namespace

// What the serving thread has for one request. The loop's; bounded by the tokens of the answer (I6).
struct Face::Answer {
  GenerationId id = 0;
  std::deque<GenerationUpdate> updates;
  http::Event came;
};

Face::Face(const Parts& parts) : parts_(parts), created_(unix_seconds()) {
  parts_.metrics.on_collect([this] { refresh_gauges(); });
}

Status Face::listen() {
  http::ServerConfig config;
  config.host = parts_.options.host;
  config.port = parts_.options.port;
  const auto handler = [this](http::Request& request, http::ResponseWriter& writer) { return serve(request, writer); };
  KVF_ASSIGN_OR_RETURN(server_, http::Server::create(parts_.loop, parts_.deadlines, std::move(config), handler));
  return {};
}

void Face::drain() {
  draining_ = true;
  server_->drain();
}

asio::awaitable<void> Face::serve(http::Request& request, http::ResponseWriter& writer) {
  const bool chat = request.path() == "/v1/chat/completions";
  if (!chat && request.path() != "/v1/completions") {
    http::Response response = page(request);
    const Status sent = co_await writer.send(std::move(response));
    static_cast<void>(sent.ok());
    co_return;
  }
  if (request.method != "POST") {
    http::Response response = http::error_response(405, "this page takes POST");
    response.headers.add("Allow", "POST");
    const Status sent = co_await writer.send(std::move(response));
    static_cast<void>(sent.ok());
    co_return;
  }
  co_await complete(request, writer, chat);
}

http::Response Face::page(const http::Request& request) {
  if (request.method != "GET" && request.method != "HEAD") return http::error_response(405, "this page takes GET");
  const std::string_view path = request.path();
  if (path == "/health") {
    const bool ready = !draining_ && (parts_.transfer == nullptr || parts_.transfer->ready());
    return with_status(ready ? 200 : 503, ready ? R"({"status":"ok"})" : R"({"status":"not ready"})");
  }
  if (path == "/v1/models") {
    return with_status(200, format_models(parts_.options.model_name, parts_.options.model.max_model_len, created_));
  }
  if (path == "/metrics") {
    MetricsPage joined;
    joined.add(parts_.metrics.expose());
    if (parts_.transfer != nullptr) joined.add(parts_.transfer->engine_metrics());
    http::Response response = with_status(200, joined.text());
    response.content_type = "text/plain; version=0.0.4";
    return response;
  }
  if (path == "/debug/engines" && parts_.transfer != nullptr) return with_status(200, parts_.transfer->describe());
  return http::error_response(404, "no such page");
}

Result<CompletionRequest> Face::read(const http::Request& request, bool chat) {
  const ParseContext context{
      .model = parts_.options.model_name, .max_model_len = parts_.options.model.max_model_len, .seed = random_.next()};
  Result<CompletionRequest> read = chat ? parse_chat(request.body, context) : parse_completion(request.body, context);
  if (!read.ok()) return read;
  const KvRole role = read->generation.role;
  const ServerRole own = parts_.options.role;
  if ((role == KvRole::produce && own == ServerRole::decode) ||
      (role == KvRole::consume && own == ServerRole::prefill)) {
    return Error{ErrorCode::invalid_argument, "kv_transfer_params ask for what this server's role does not do", "", "",
                 "request"};
  }
  read->generation.deadline = after(parts_.deadlines.now(), parts_.options.request_timeout);
  return read;
}

asio::awaitable<void> Face::complete(http::Request& request, http::ResponseWriter& writer, bool chat) {
  const auto parsed = read(request, chat);
  if (!parsed.ok()) {
    // As in vLLM, the owner of the KV is told that nobody will come.
    const auto refused = refused_transfer(request.body);
    if (refused && parts_.transfer != nullptr) parts_.transfer->release(*refused);
    count(chat, nullptr);
    http::Response response = refusal(parsed.error());
    const Status sent = co_await writer.send(std::move(response));
    static_cast<void>(sent.ok());
    co_return;
  }
  ++answering_;
  struct Leaving {
    size_t& count;
    ~Leaving() { --count; }
  } const leaving{answering_};
  const auto id = request.headers.get("x-request-id");
  const ResponseHead head{
      .id = (chat ? "chatcmpl-" : "cmpl-") + (id ? std::string(*id) : fmt::format("{:016x}", random_.next())),
      .model = parts_.options.model_name,
      .created = unix_seconds()};
  const auto submitted = submit(*parsed);
  // A client that leaves ends its request at once; the answer's end is waited for nevertheless.
  writer.on_gone([this, submitted] { parts_.serving.abort(submitted->id); });
  co_await answer(*parsed, head, *submitted, writer);
  writer.on_gone({});
}

std::shared_ptr<Face::Answer> Face::submit(const CompletionRequest& request) {
  auto answer = std::make_shared<Answer>();
  answer->id = parts_.serving.submit(request.generation, [&loop = parts_.loop, answer](const GenerationUpdate& update) {
    asio::post(loop, [answer, update = GenerationUpdate(update)]() mutable {
      tell_of_shutdown(update);
      answer->updates.push_back(std::move(update));
      answer->came.set();
    });
  });
  return answer;
}

asio::awaitable<void> Face::answer(const CompletionRequest& request, const ResponseHead& head, Answer& answer,
                                   http::ResponseWriter& writer) {
  CompletionFormatter formatter(request, head);
  for (bool ended = false; !ended;) {
    co_await answer.came.wait();
    std::string events;
    while (!ended && !answer.updates.empty()) {
      const GenerationUpdate update = std::move(answer.updates.front());
      answer.updates.pop_front();
      ended = update.end.has_value();
      if (ended) count(request.chat, &*update.end);
      const bool failed = ended && update.end->error && !writer.started() && events.empty();
      if (failed) {
        http::Response response = refusal(*update.end->error);
        const Status sent = co_await writer.send(std::move(response));
        static_cast<void>(sent.ok());
        co_return;
      }
      if (request.stream) {
        events += formatter.events(update);
      } else {
        formatter.collect(update);
      }
    }
    if (writer.gone() || !request.stream) continue;
    Status sent;
    if (!writer.started()) {
      http::Headers headers;
      headers.add("Content-Type", "text/event-stream; charset=utf-8");
      headers.add("Cache-Control", "no-cache");
      sent = co_await writer.start(200, headers);
    }
    if (sent.ok() && !events.empty()) sent = co_await writer.write(events);
    // The client does not read, or has left: its request ends, and this with it.
    if (!sent.ok()) parts_.serving.abort(answer.id);
  }
  if (writer.gone()) co_return;
  if (request.stream) {
    const Status sent = co_await writer.finish();
    static_cast<void>(sent.ok());
  } else {
    http::Response response = with_status(200, formatter.response());
    const Status sent = co_await writer.send(std::move(response));
    static_cast<void>(sent.ok());
  }
}

void Face::count(bool chat, const GenerationEnd* end) {
  constexpr std::string_view kReasons[] = {"stop", "length", "abort", "error"};
  const std::string_view reason = end == nullptr ? "refused" : kReasons[static_cast<size_t>(end->reason)];
  parts_.metrics
      .counter("kvferry_sim_requests_total", "Requests by how their answer ended",
               {{"api", chat ? "chat" : "completions"}, {"end", std::string(reason)}})
      .add();
  if (end == nullptr) return;
  parts_.metrics.counter("kvferry_sim_prompt_tokens_total", "Tokens of prompts").add(end->prompt_tokens);
  parts_.metrics.counter("kvferry_sim_answer_tokens_total", "Tokens of answers").add(end->answer_tokens);
}

void Face::refresh_gauges() {
  const SchedulerStats stats = parts_.serving.stats();
  const auto set = [&](const char* name, const char* help, size_t value, const Labels& labels = {}) {
    parts_.metrics.gauge(name, help, labels).set(static_cast<int64_t>(value));
  };
  const char* blocks = "Blocks of the KV cache: free, cached (idle, but remembered) or used";
  set("kvferry_sim_blocks", blocks, stats.blocks.free, {{"state", "free"}});
  set("kvferry_sim_blocks", blocks, stats.blocks.cached, {{"state", "cached"}});
  set("kvferry_sim_blocks", blocks, stats.blocks.used, {{"state", "used"}});
  set("kvferry_sim_held_blocks", "Blocks pinned for a reader, or until nobody writes into them any more",
      stats.held_blocks);
  const char* requests = "Requests by state; held ones have ended for their client and wait for a reader";
  set("kvferry_sim_requests", requests, stats.waiting, {{"state", "waiting"}});
  set("kvferry_sim_requests", requests, stats.loading, {{"state", "loading"}});
  set("kvferry_sim_requests", requests, stats.running, {{"state", "running"}});
  set("kvferry_sim_requests", requests, stats.held, {{"state", "held"}});
  set("kvferry_sim_requests", requests, stats.draining, {{"state", "draining"}});
  set("kvferry_sim_connections", "Open HTTP connections", server_ ? server_->counts().open : 0);
}

}  // namespace kvferry::sim
