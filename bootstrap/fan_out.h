#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "http/deadlines.h"
#include "http/tls.h"
#include "http/url.h"

namespace kvferry::bootstrap {

// One release, to be told to many workers' servers.
struct FanOut {
  std::string transfer_id;
  bool force = false;
  std::string token;
  std::vector<http::Url> targets;
  Duration limit = std::chrono::milliseconds(1500);  // for all of them: the proxy waits 2 s
  std::shared_ptr<http::TlsContext> trust;           // for https
  size_t at_once = 64;                               // connections
};

// DELETE /v1/parcels/{id}?scope=rank at each target. acknowledged[i]: target i has done it. Takes `limit` at most.
boost::asio::awaitable<std::vector<bool>> release_at_all(boost::asio::io_context& loop, http::Deadlines& deadlines,
                                                         FanOut work);

}  // namespace kvferry::bootstrap
