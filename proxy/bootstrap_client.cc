#include "proxy/bootstrap_client.h"

#include <simdjson.h>

#include <charconv>

#include "http/client.h"

namespace kvferry::proxy {
namespace {

constexpr Duration kTimeout = std::chrono::seconds(2);

Error unexpected(const http::Url& bootstrap, int status) {
  return {ErrorCode::unavailable, "the bootstrap server answered " + std::to_string(status), "", bootstrap.authority(),
          "bootstrap"};
}

http::Fetch request(const http::Url& bootstrap, std::string method, std::string target, const std::string& api_key) {
  http::Fetch fetch;
  fetch.method = std::move(method);
  fetch.url = bootstrap;
  fetch.target = std::move(target);
  fetch.timeout = kTimeout;
  if (!api_key.empty()) fetch.headers.add("Authorization", "Bearer " + api_key);
  return fetch;
}

}  // namespace

Result<std::map<int, std::string>> parse_query(const std::string& body) {
  const auto fault = [](std::string cause) {
    return Error{ErrorCode::protocol, "cannot read the bootstrap server's answer", std::move(cause), "", "bootstrap"};
  };
  simdjson::dom::parser parser;
  simdjson::dom::object ranks;
  if (const auto error = parser.parse(body).get_object().get(ranks)) return fault(simdjson::error_message(error));
  std::map<int, std::string> ids;
  for (const auto& [key, value] : ranks) {
    int rank = 0;
    const auto read = std::from_chars(key.data(), key.data() + key.size(), rank);
    std::string_view id;
    if (read.ec != std::errc() || read.ptr != key.data() + key.size()) return fault("a dp rank is not a number");
    if (value["engine_id"].get_string().get(id)) return fault("an engine_id is missing");
    ids.emplace(rank, id);
  }
  return ids;
}

boost::asio::awaitable<Result<std::map<int, std::string>>> HttpBootstrapClient::query(const http::Url& bootstrap) {
  http::Fetch fetch = request(bootstrap, "GET", "/query", api_key_);
  auto answer = co_await http::fetch(loop_, deadlines_, std::move(fetch));
  if (!answer.ok()) co_return answer.error();
  if (answer->head.status != 200) co_return unexpected(bootstrap, answer->head.status);
  co_return parse_query(answer->body);
}

boost::asio::awaitable<Result<BootstrapClient::Released>> HttpBootstrapClient::release(const http::Url& bootstrap,
                                                                                       std::string transfer_id) {
  http::Fetch fetch = request(bootstrap, "DELETE", "/v1/parcels/" + transfer_id + "?force=1", api_key_);
  auto answer = co_await http::fetch(loop_, deadlines_, std::move(fetch));
  if (!answer.ok()) co_return answer.error();
  switch (answer->head.status) {
    case 200:
    case 204:
      co_return Released::done;
    case 202:
      co_return Released::pending;
    case 404:
    case 405:
      co_return Released::unknown_face;
    default:
      co_return unexpected(bootstrap, answer->head.status);
  }
}

}  // namespace kvferry::proxy
