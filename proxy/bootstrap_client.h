#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <map>
#include <string>

#include "common/result.h"
#include "http/deadlines.h"
#include "http/url.h"

namespace kvferry::proxy {

// What the proxy asks of a prefiller's bootstrap server: vLLM's own or kvferry's.
class BootstrapClient {
 public:
  virtual ~BootstrapClient() = default;

  // GET /query: the engine id of each dp rank.
  virtual boost::asio::awaitable<Result<std::map<int, std::string>>> query(const http::Url& bootstrap) = 0;

  // DELETE /v1/parcels/{transfer_id}?force=1. `done`: every rank has acknowledged. `pending`: some have not, ask again.
  // `unknown_face`: this server knows no parcels (vLLM's own). Errors: not reached or 5xx, ask again.
  enum class Released { done, pending, unknown_face };
  virtual boost::asio::awaitable<Result<Released>> release(const http::Url& bootstrap, std::string transfer_id) = 0;
};

// Over HTTP. `api_key` is sent as a bearer token unless empty.
class HttpBootstrapClient final : public BootstrapClient {
 public:
  HttpBootstrapClient(boost::asio::io_context& loop, http::Deadlines& deadlines, std::string api_key)
      : loop_(loop), deadlines_(deadlines), api_key_(std::move(api_key)) {}

  boost::asio::awaitable<Result<std::map<int, std::string>>> query(const http::Url& bootstrap) override;
  boost::asio::awaitable<Result<Released>> release(const http::Url& bootstrap, std::string transfer_id) override;

 private:
  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  const std::string api_key_;
};

// {"0":{"engine_id":"...",...},...} -> dp rank -> engine id.
Result<std::map<int, std::string>> parse_query(const std::string& body);

}  // namespace kvferry::proxy
