#include "bootstrap/service.h"

#include <fmt/format.h>

#include "bootstrap/bodies.h"
#include "common/text.h"
#include "http/auth.h"
#include "http/json.h"

namespace kvferry::bootstrap {
namespace {

namespace asio = boost::asio;

int status_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::not_found:
      return 404;
    case ErrorCode::conflict:
      return 409;
    case ErrorCode::resource_exhausted:
      return 503;
    default:
      return 400;
  }
}

http::Response refused(const Error& error) {
  return http::error_response(status_of(error.code), error.to_string());
}

http::Response json(std::string body, int status = 200) {
  http::Response response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

std::string_view name_of(Endpoint endpoint) {
  constexpr std::string_view kNames[] = {"register", "heartbeat", "query",  "workers",
                                         "worker",   "parcel",    "health", "metrics"};
  return kNames[static_cast<size_t>(endpoint)];
}

// The methods of a page, as an Allow header lists them. HEAD goes where GET does.
std::string_view methods_of(Endpoint endpoint) {
  switch (endpoint) {
    case Endpoint::registration:
      return "POST, DELETE";
    case Endpoint::heartbeat:
      return "POST";
    case Endpoint::parcel:
      return "GET, HEAD, DELETE";
    default:
      return "GET, HEAD";
  }
}

bool allowed(std::string_view methods, std::string_view method) {
  for (size_t at = 0; at <= methods.size();) {
    const size_t end = std::min(methods.find(", ", at), methods.size());
    if (methods.substr(at, end - at) == method) return true;
    at = end + 2;
  }
  return false;
}

bool changes_state(const http::Request& request) {
  return request.method == "POST" || request.method == "DELETE";
}

bool uses_directory(Endpoint endpoint) {
  return endpoint == Endpoint::registration || endpoint == Endpoint::heartbeat || endpoint == Endpoint::query ||
         endpoint == Endpoint::workers;
}

bool wants_protobuf(const http::Headers& headers) {
  const auto accept = headers.get("accept");
  return accept && (accept->find(kProtobufType) != std::string_view::npos ||
                    accept->find("application/protobuf") != std::string_view::npos);
}

}  // namespace

Service::Service(asio::io_context& loop, http::Deadlines& deadlines, std::shared_ptr<Mailbox> mailbox,
                 ServiceConfig config, ParcelControl* parcels)
    : loop_(loop),
      deadlines_(deadlines),
      mailbox_(std::move(mailbox)),
      config_(std::move(config)),
      parcels_(parcels),
      directory_(config_.directory),
      began_(deadlines.now()) {
  metrics_.on_collect([this] { refresh_gauges(); });
}

void Service::set_worker(const WorkerInfo& worker) {
  worker_json_ = to_json(worker);
  worker_protobuf_ = to_protobuf(worker);
  own_incarnation_ = worker.incarnation;
}

asio::awaitable<void> Service::handle(http::Request& request, http::ResponseWriter& out) {
  const auto path = parse_path(request.path());
  http::Response response;
  if (!path) {
    response = http::error_response(404, "no such page");
  } else if (const auto methods = methods_of(path->endpoint); !allowed(methods, request.method)) {
    response = http::error_response(405, "this page does not know that method");
    response.headers.add("Allow", methods);
  } else if (changes_state(request) && !http::authorized(request.headers, config_.token)) {
    response = http::error_response(401, "a bearer token is needed");
    response.headers.add("WWW-Authenticate", "Bearer");
  } else if (!config_.keeps_directory && uses_directory(path->endpoint)) {
    response = http::error_response(404, "this server keeps no directory: ask the one at the base port");
  } else {
    response = co_await answer(request, *path);
  }
  metrics_
      .counter(
          "kvferry_bootstrap_requests_total", "Requests answered",
          {{"page", std::string(path ? name_of(path->endpoint) : "none")}, {"status", std::to_string(response.status)}})
      .add();
  const Status sent = co_await out.send(std::move(response));
  static_cast<void>(sent.ok());  // a client that left misses its answer
}

asio::awaitable<http::Response> Service::answer(const http::Request& request, const Path& path) {
  switch (path.endpoint) {
    case Endpoint::registration:
      co_return answer_registration(request, path.space);
    case Endpoint::heartbeat:
      co_return renew(request.body, path.space);
    case Endpoint::query:
      directory_.expire(deadlines_.now());
      co_return cacheable(directory_.query(path.space));
    case Endpoint::workers:
      directory_.expire(deadlines_.now());
      co_return cacheable(format_workers(directory_.workers(path.space)));
    case Endpoint::worker:
      co_return describe_worker(request);
    case Endpoint::parcel: {
      http::Response response;
      if (request.method == "DELETE") {
        response = co_await release(request, path);
      } else {
        response = co_await describe_parcel(path.id);
      }
      co_return response;
    }
    case Endpoint::health:
      co_return json(R"({"status":"ok"})");
    case Endpoint::metrics:
      break;
  }
  http::Response response;
  response.body = metrics_.expose();
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  co_return response;
}

http::Response Service::answer_registration(const http::Request& request, const std::string& space) {
  return request.method == "POST" ? add(request.body, space) : remove(request.body, space);
}

http::Response Service::add(const std::string& body, const std::string& space) {
  const auto registration = parse_registration(body);
  if (!registration.ok()) return refused(registration.error());
  const auto added = directory_.add(space, *registration, deadlines_.now());
  if (!added.ok()) return refused(added.error());
  if (added->change == Directory::Change::replaced) {
    metrics_.counter("kvferry_bootstrap_replaced_total", "Registrations that replaced an earlier process's").add();
  }
  // vLLM's workers get vLLM's answer, to the byte.
  if (!registration->ttl) return json(R"({"status":"ok"})");
  return json(fmt::format(R"({{"status":"ok","ttl_ms":{}}})", added->ttl / std::chrono::milliseconds(1)));
}

http::Response Service::remove(const std::string& body, const std::string& space) {
  const auto removal = parse_removal(body);
  if (!removal.ok()) return refused(removal.error());
  const size_t removed = directory_.remove(space, removal->engine_id, removal->rank, removal->incarnation);
  return json(fmt::format(R"({{"status":"ok","removed":{}}})", removed));
}

http::Response Service::renew(const std::string& body, const std::string& space) {
  const auto name = parse_worker_name(body);
  if (!name.ok()) return refused(name.error());
  const auto ttl = directory_.renew(space, *name, deadlines_.now());
  if (!ttl.ok()) return refused(ttl.error());
  return json(fmt::format(R"({{"status":"ok","ttl_ms":{}}})", *ttl / std::chrono::milliseconds(1)));
}

http::Response Service::describe_worker(const http::Request& request) const {
  if (worker_json_.empty()) return http::error_response(404, "no worker is served here");
  const bool protobuf = wants_protobuf(request.headers);
  http::Response response = cacheable(protobuf ? worker_protobuf_ : worker_json_);
  if (protobuf) response.content_type = kProtobufType;
  response.headers.add("Vary", "Accept");
  return response;
}

http::Response Service::cacheable(std::string body) const {
  http::Response response = json(std::move(body));
  response.headers.add("Kvferry-Ttl-Ms", std::to_string(config_.query_ttl / std::chrono::milliseconds(1)));
  return response;
}

void Service::refresh_gauges() {
  directory_.expire(deadlines_.now());
  metrics_.gauge("kvferry_bootstrap_workers", "Registered workers").set(static_cast<int64_t>(directory_.size()));
  metrics_.gauge("kvferry_bootstrap_namespaces", "Namespaces with a worker")
      .set(static_cast<int64_t>(directory_.namespaces()));
}

}  // namespace kvferry::bootstrap
