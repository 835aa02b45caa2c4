#include <algorithm>
#include <array>

#include "http/auth.h"
#include "http/json.h"
#include "proxy/core.h"

// Which request goes where.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

// Of vLLM's paths outside /v1, those that serve clients; its administrative ones are not for them.
constexpr std::array<std::string_view, 11> kForwarded = {"/tokenize", "/detokenize",  "/version",   "/ping",
                                                         "/score",    "/rerank",      "/v2/rerank", "/pooling",
                                                         "/classify", "/invocations", "/v2/embed"};

bool forwarded(std::string_view path) {
  return path.starts_with("/v1/") || std::find(kForwarded.begin(), kForwarded.end(), path) != kForwarded.end();
}

// What vLLM and other servers of models have; CONNECT and TRACE are for the ears of proxies.
bool known_method(std::string_view method) {
  constexpr std::array<std::string_view, 7> kKnown = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"};
  return std::find(kKnown.begin(), kKnown.end(), method) != kKnown.end();
}

// A path that a server behind this one might read as another, out of /v1/: with segments "." or "..", also where their
// dots or the slashes around them are percent-encoded, or with backslashes. (A model's name may hold %2F.)
bool climbs(std::string_view path) {
  std::string plain;
  for (size_t i = 0; i < path.size(); ++i) {
    const std::string_view escape = path.substr(i, 3);
    if (http::iequals(escape, "%2e") || http::iequals(escape, "%5c") || path[i] == '\\') return true;
    const bool slash = http::iequals(escape, "%2f");
    plain.push_back(slash ? '/' : path[i]);
    if (slash) i += 2;
  }
  plain.push_back('/');
  return plain.find("/./") != std::string::npos || plain.find("/../") != std::string::npos;
}

http::Response text(int status, std::string body) {
  http::Response response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

}  // namespace

http::Response Proxy::Core::health() const {
  const TimePoint now = deadlines.now();
  const bool decoders = backends.any_usable(Role::decode, now);
  const bool prefillers = backends.any_usable(Role::prefill, now);
  const bool ready = !draining && decoders && (prefillers || config.local_prefill);
  std::string body = ready ? R"({"status":"ok")" : R"({"status":"unavailable")";
  body.append(prefillers ? R"(,"prefill":true)" : R"(,"prefill":false)");
  body.append(decoders ? R"(,"decode":true})" : R"(,"decode":false})");
  return text(ready ? 200 : 503, std::move(body));
}

http::Response Proxy::Core::metrics_page() const {
  http::Response response = text(200, metrics.registry.expose());
  response.content_type = "text/plain; version=0.0.4";
  return response;
}

// All that needs no body: nobody without the key has one read.
std::optional<http::Response> Proxy::Core::answer_from_head(const http::RequestHead& request) {
  const std::string_view path = request.path();
  if (path == "/healthcheck" || path == "/ping") return text(200, R"({"status":"ok"})");
  if (path == "/health" || path == "/readiness") return health();
  if (!http::authorized(request.headers, config.require_key)) {
    metrics.leg("front", 401, "unauthorized", "");
    http::Response response = http::error_response(401, "a valid API key is needed");
    response.headers.add("WWW-Authenticate", "Bearer");
    return response;
  }
  if (path == "/metrics") return metrics_page();
  if (!known_method(request.method)) return http::error_response(405, "no such method");
  if (!forwarded(path) || climbs(path)) return http::error_response(404, "no such path");
  return std::nullopt;
}

// REQUIRES: answer_from_head() has let it through.
asio::awaitable<void> Proxy::Core::forward(http::Request& request, http::ResponseWriter& writer) {
  const TimePoint arrived = deadlines.now();
  const Admission::Verdict verdict = co_await admission.enter(writer);
  if (verdict == Admission::Verdict::left) {
    metrics.leg("front", 0, "client_gone", "");
    co_return;
  }
  if (verdict != Admission::Verdict::admitted) {
    const bool full = verdict == Admission::Verdict::full;
    metrics.leg("front", full ? 429 : 503, full ? "queue_full" : "queue_timeout", "");
    http::Response refusal = full ? http::error_response(429, "too many requests are waiting")
                                  : http::error_response(503, "no place for the request in time");
    (void)co_await writer.send(std::move(refusal));
    co_return;
  }
  struct Place {
    Admission& admission;
    ~Place() { admission.leave(); }
  };
  const Place place{admission};
  Exchange exchange(context, request, writer, deadlines.now() - arrived);
  const auto endpoint = endpoint_of(request.path());
  if (endpoint && request.method == "POST") {
    co_await exchange.infer(*endpoint);
  } else {
    co_await exchange.pass();
  }
}

}  // namespace kvferry::proxy
