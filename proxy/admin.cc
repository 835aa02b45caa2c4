#include "http/auth.h"
#include "http/json.h"
#include "proxy/change.h"
#include "proxy/core.h"

// The admin server: GET and POST /admin/backends, GET /metrics, and what /dashboard shows.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

int status_of(const Error& error) {
  switch (error.code) {
    case ErrorCode::not_found:
      return 404;
    case ErrorCode::already_exists:
      return 409;
    default:
      return 400;
  }
}

void append_backend(std::string& out, const Backend& backend, TimePoint now) {
  out.append(R"({"role":")").append(to_string(backend.role)).append(R"(","url":)");
  http::append_json_string(out, backend.url.to_string());
  out.append(R"(,"usable":)").append(backend.usable(now) ? "true" : "false");
  out.append(R"(,"healthy":)").append(backend.healthy ? "true" : "false");
  out.append(R"(,"draining":)").append(backend.draining ? "true" : "false");
  out.append(R"(,"breaker":")").append(to_string(backend.breaker.state(now))).append(R"(","requests":)");
  http::append_number(out, backend.requests);
  out.append(R"(,"parcels":)");
  http::append_number(out, backend.parcels);
  out.append(R"(,"engine_ids":{)");
  bool first = true;
  for (const auto& [rank, id] : backend.engine_ids) {
    if (!std::exchange(first, false)) out.push_back(',');
    http::append_json_string(out, std::to_string(rank));
    out.push_back(':');
    http::append_json_string(out, id);
  }
  out.append("}}");
}

}  // namespace

std::string Proxy::Core::describe() const {
  const TimePoint now = deadlines.now();
  std::string out = R"({"connector":")";
  out.append(proxy::to_string(config.dialect)).append(R"(","policy":")").append(proxy::to_string(config.policy));
  out.append(R"(","backends":[)");
  bool first = true;
  for (const Role role : {Role::prefill, Role::decode}) {
    for (const auto& backend : backends.of(role)) {
      if (!std::exchange(first, false)) out.push_back(',');
      append_backend(out, *backend, now);
    }
  }
  return out.append("]}");
}

http::Response Proxy::Core::change_backends(const std::string& body) {
  const auto change = read_change(body);
  if (!change.ok()) return http::error_response(400, change.error().to_string());
  Status status;
  if (change->action == "add") {
    status = add_backend(change->role, change->url, change->bootstrap_port);
  } else if (change->action == "remove") {
    for (const auto& backend : backends.of(change->role)) {
      if (backend->name != change->url.authority()) continue;
      router.forget(*backend);
      pool.forget(*backend);
    }
    status = backends.remove(change->role, change->url);
  } else if (change->action == "drain" || change->action == "undrain") {
    status = backends.drain(change->role, change->url, change->action == "drain");
  } else {
    status = Error{ErrorCode::invalid_argument, "\"action\" is add, remove, drain or undrain", "", "", "admin"};
  }
  if (!status.ok()) return http::error_response(status_of(status.error()), status.error().to_string());
  log->info("admin: {} {} {}", change->action, proxy::to_string(change->role), change->url.authority());
  http::Response response;
  response.body = describe();
  return response;
}

asio::awaitable<void> Proxy::Core::serve_admin(http::Request& request, http::ResponseWriter& writer) {
  const std::string_view path = request.path();
  const bool known =
      path == "/metrics" || path == "/admin/parcels" || path == "/admin/peers" || path == "/admin/backends";
  http::Response response;
  if (path == "/dashboard") {
    response = dashboard();  // holds nothing by itself; what it asks for needs the key
  } else if (!known) {
    response = http::error_response(404, "no such path");
  } else if (!http::authorized(request.headers, config.admin_key)) {
    response = http::error_response(401, "the admin key is needed");
  } else if (path == "/metrics") {
    response = metrics_page();
  } else if (path == "/admin/parcels") {
    response = pinned_parcels();
  } else if (path == "/admin/peers") {
    response = co_await peers();
  } else if (request.method == "GET") {
    response.body = describe();
  } else if (request.method != "POST") {
    response = http::error_response(405, "GET or POST");
  } else if (config.admin_key.empty()) {
    response = http::error_response(403, "changes need --admin-key to be set");
  } else {
    response = change_backends(request.body);
  }
  (void)co_await writer.send(std::move(response));
}

}  // namespace kvferry::proxy
