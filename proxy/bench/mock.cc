#include "proxy/bench/mock.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "http/json.h"

namespace kvferry::proxy::mock {
namespace {

namespace asio = boost::asio;

std::unique_ptr<http::Server> listen(asio::io_context& loop, http::Deadlines& deadlines, uint16_t port,
                                     const std::string& host, http::Handler handler) {
  http::ServerConfig config;
  config.host = host;
  config.port = port;
  config.max_connections = 30000;
  auto server = http::Server::create(loop, deadlines, config, std::move(handler));
  if (!server.ok()) {
    std::fprintf(stderr, "mock: %s\n", server.error().to_string().c_str());
    std::abort();
  }
  return std::move(*server);
}

std::string chunk(const std::string& payload) {
  char size[24];
  std::snprintf(size, sizeof size, "%zx\r\n", payload.size());
  return size + payload + "\r\n";
}

// What vLLM's Responses API says before its engine has the request.
std::string prelude() {
  constexpr std::string_view kResponse = R"({"response":{"id":"resp_1","status":"in_progress"},"type":")";
  std::string text;
  for (const std::string type : {"response.created", "response.in_progress"}) {
    text.append(chunk("event: " + type + "\ndata: " + std::string(kResponse) + type + "\"}\n\n"));
  }
  return text;
}

std::string event_text(size_t index, size_t bytes, bool named) {
  std::string text = named ? "event: response.output_text.delta\n" : "";
  text += "data: {\"choices\":[{\"index\":" + std::to_string(index) + ",\"text\":\"";
  constexpr std::string_view kEnd = "\"}]}\n\n";
  while (text.size() + kEnd.size() < bytes) text.push_back('t');
  return text.append(kEnd);
}

}  // namespace

std::string member_text(const std::string& json, const std::string& name) {
  const std::string key = "\"" + name + "\":\"";
  const size_t at = json.find(key);
  if (at == std::string::npos) return {};
  const size_t begin = at + key.size();
  return json.substr(begin, json.find('"', begin) - begin);
}

MockServer::MockServer(asio::io_context& loop, http::Deadlines& deadlines, uint16_t port, std::string host)
    : loop_(loop), deadlines_(deadlines), port_(port), host_(std::move(host)), reserved_(loop) {
  if (port == 0) reserve();
  start();
}

MockServer::~MockServer() = default;

// The kernel gives a port that is bound to nobody else, and refuses connections to it as long as nobody listens.
void MockServer::reserve() {
  const asio::ip::tcp::endpoint anywhere(asio::ip::make_address(host_), 0);
  reserved_.open(anywhere.protocol());
  reserved_.set_option(asio::ip::tcp::acceptor::reuse_address(true));
  reserved_.bind(anywhere);
  port_ = reserved_.local_endpoint().port();
}

void MockServer::start() {
  server_ = listen(loop_, deadlines_, port_, host_,
                   [this](http::Request& request, http::ResponseWriter& writer) { return serve(request, writer); });
  port_ = server_->port();
}

void MockServer::stop() {
  server_.reset();
}

asio::awaitable<void> MockServer::sleep(Duration span, http::ResponseWriter& writer) {
  if (span <= Duration(0) || writer.gone()) co_return;
  const auto timer = std::make_shared<asio::steady_timer>(loop_);
  timer->expires_after(span);
  if (span == kUntilWoken) asleep_.push_back(timer);
  writer.on_gone([timer] { timer->cancel(); });
  co_await timer->async_wait(asio::as_tuple(asio::use_awaitable));
  writer.on_gone(nullptr);
}

size_t MockServer::wake() {
  size_t woken = 0;
  for (const auto& one : std::exchange(asleep_, {})) {
    if (const auto timer = one.lock()) woken += timer->cancel();
  }
  return woken;
}

asio::awaitable<void> MockServer::serve(http::Request& request, http::ResponseWriter& writer) {
  if (request.path() == "/health") {
    http::Response response;
    response.status = healthy ? 200 : 503;
    (void)co_await writer.send(std::move(response));
    co_return;
  }
  if (member_text(request.body, "model").starts_with("kvferry-release-")) {
    pinged.push_back(member_text(request.body, "transfer_id"));
    http::Response refusal = http::error_response(404, "The model does not exist");
    (void)co_await writer.send(std::move(refusal));
    co_return;
  }
  if (request.path() == "/metrics") {
    http::Response response;
    response.status = shows_metrics ? 200 : 404;
    response.body = metrics_page();
    (void)co_await writer.send(std::move(response));
    co_return;
  }
  ++requests;
  ++running;
  const bool fetches = request.body.find("\"do_remote_prefill\":true") != std::string::npos;
  ++(fetches && moves_kv ? hits_ : prompts_);
  if (record) seen.push_back({request.method, request.target, request.body, request.headers});
  if (on_request) on_request(request);
  co_await answer(request, writer);
  if (writer.gone()) {
    ++clients_lost;
    if (on_client_lost) on_client_lost(request);
  }
  --running;
}

// As vLLM counts them, in tokens; a prompt has ten here.
std::string MockServer::metrics_page() const {
  return "# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total{engine=\"0\"} " +
         std::to_string(10 * (prompts_ + hits_)) + "\nvllm:external_prefix_cache_hits_total{engine=\"0\"} " +
         std::to_string(10 * hits_) + "\n";
}

asio::awaitable<void> MockServer::raw_answer(http::ResponseWriter& writer, std::string text) {
  if (behaviour.split_at > 0 && behaviour.split_at < text.size()) {
    const Status first = co_await writer.raw(std::string_view(text).substr(0, behaviour.split_at));
    if (!first.ok()) co_return;
    co_await sleep(std::chrono::milliseconds(1), writer);
    (void)co_await writer.raw(std::string_view(text).substr(behaviour.split_at));
  } else {
    (void)co_await writer.raw(text);
  }
  writer.raw_end(!behaviour.close_after_answer && behaviour.body != Body::until_close && !behaviour.half_answer);
}

asio::awaitable<void> MockServer::stream(const http::Request& request, http::ResponseWriter& writer) {
  const bool responses = request.path() == "/v1/responses";
  std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";
  head += "Transfer-Encoding: chunked\r\nX-Mock: stream\r\n\r\n";
  if (responses) head += prelude();
  if (behaviour.split_at > 0) {
    std::string all = head;
    for (size_t i = 0; i < behaviour.events; ++i) all += chunk(event_text(i, behaviour.event_bytes, responses));
    co_await raw_answer(writer, all + chunk("data: [DONE]\n\n") + "0\r\n\r\n");
    co_return;
  }
  Status sent = co_await writer.raw(head);
  co_await sleep(behaviour.first_delay, writer);
  for (size_t i = 0; sent.ok() && i < behaviour.events && !writer.gone(); ++i) {
    if (i > 0) co_await sleep(behaviour.event_pause, writer);
    if (writer.gone()) co_return;
    const std::string piece = chunk(event_text(i, behaviour.event_bytes, responses));
    if (i == behaviour.break_after_events) {
      if (behaviour.break_in_chunk) (void)co_await writer.raw(std::string_view(piece).substr(0, piece.size() / 2));
      co_return;  // no raw_end: the connection is closed
    }
    ++events_sent;
    sent = co_await writer.raw(piece);
  }
  if (!sent.ok() || writer.gone()) co_return;
  const std::string end = chunk("data: [DONE]\n\n") + "0\r\n\r\n";
  (void)co_await writer.raw(end);
  writer.raw_end(!behaviour.close_after_answer);
}

asio::awaitable<void> MockServer::answer(const http::Request& request, http::ResponseWriter& writer) {
  co_await sleep(behaviour.delay, writer);
  if (writer.gone()) co_return;
  if (behaviour.reset_before_head) {
    (void)co_await writer.raw("");
    co_return;
  }
  const bool wants_stream = request.body.find("\"stream\":true") != std::string::npos ||
                            request.body.find("\"stream\": true") != std::string::npos;
  if (wants_stream && behaviour.status == 200) {
    co_await stream(request, writer);
    co_return;
  }
  std::string body = R"({"object":"text_completion","choices":[{"index":0,"text":"hello","finish_reason":"length"}]})";
  if (behaviour.status >= 400) body = http::error_body(behaviour.status, "mock refusal");
  std::string text;
  http::append_status_line(text, behaviour.status);
  http::append_field(text, "Content-Type", behaviour.content_type);
  http::append_field(text, "X-Mock", "answer");
  if (behaviour.body == Body::sized) http::append_field(text, "Content-Length", std::to_string(body.size()));
  if (behaviour.body == Body::chunked) {
    http::append_field(text, "Transfer-Encoding", "chunked");
    body = chunk(body.substr(0, 10)) + chunk(body.substr(10)) + "0\r\n\r\n";
  }
  if (behaviour.half_answer) body.resize(body.size() / 2);
  text.append("\r\n").append(body);
  co_await raw_answer(writer, std::move(text));
}

MockBootstrap::MockBootstrap(asio::io_context& loop, http::Deadlines& deadlines, uint16_t port, std::string host)
    : server_(listen(loop, deadlines, port, host,
                     [this](http::Request& request, http::ResponseWriter& writer) { return serve(request, writer); })) {
}

std::string MockBootstrap::workers() const {
  std::string out;
  for (size_t dp = 0; dp <= more_engines.size(); ++dp) {
    out += (dp == 0 ? R"({"engine_id":")" + engine_id : R"(,{"engine_id":")" + more_engines[dp - 1]) +
           R"(","dp_rank":)" + std::to_string(dp) +
           R"(,"tp_rank":0,"pp_rank":0,"addr":"tcp://127.0.0.1:1","http":"http://127.0.0.1:1"})";
  }
  return R"({"workers":[)" + out + "]}";
}

asio::awaitable<void> MockBootstrap::serve(http::Request& request, http::ResponseWriter& writer) {
  constexpr std::string_view kParcels = "/v1/parcels/";
  http::Response response;
  if (down) {
    response = http::error_response(500, "mock bootstrap is down");
  } else if (request.path() == "/query") {
    ++queries;
    response.body = R"({"0":{"engine_id":")" + engine_id + R"(","worker_addr":{"0":{"0":"tcp://127.0.0.1:1"}}}})";
  } else if (parcels && request.path() == "/v1/workers") {
    ++queries;
    response.body = workers();
  } else if (parcels && request.method == "DELETE" && request.path().starts_with(kParcels)) {
    asked.push_back(request.target);
    if (pending_answers > 0) {
      --pending_answers;
      response.status = 202;
    } else {
      released.emplace_back(request.path().substr(kParcels.size()));
      if (on_release) on_release(released.back());
    }
  } else {
    response = http::error_response(404, "Not Found");
  }
  if (request.method == "GET" && late != nullptr) co_await late->wait();
  (void)co_await writer.send(std::move(response));
}

}  // namespace kvferry::proxy::mock
