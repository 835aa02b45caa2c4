#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "bootstrap/directory.h"
#include "bootstrap/mailbox.h"
#include "bootstrap/parcel_control.h"
#include "bootstrap/paths.h"
#include "bootstrap/worker_info.h"
#include "common/metrics.h"
#include "http/deadlines.h"
#include "http/server.h"
#include "http/tls.h"

namespace kvferry::bootstrap {

struct ServiceConfig {
  std::string token;  // asked of everything that changes state; empty: of nobody
  bool keeps_directory = true;
  Directory::Limits directory;
  Duration query_ttl = std::chrono::milliseconds(500);  // how long clients may keep answers
  Duration release_limit = std::chrono::milliseconds(1500);
  Duration gathering = std::chrono::seconds(5);  // after the start, as in ServerSettings
  std::shared_ptr<http::TlsContext> trust;       // for workers with https
  size_t max_releases = 256;                     // in flight; each holds up to 64 connections for release_limit
};

// What a bootstrap server answers. Everything happens on the loop. Must outlive the requests in progress.
class Service {
 public:
  // `parcels` may be null: then there are none here.
  Service(boost::asio::io_context& loop, http::Deadlines& deadlines, std::shared_ptr<Mailbox> mailbox,
          ServiceConfig config, ParcelControl* parcels);

  boost::asio::awaitable<void> handle(http::Request& request, http::ResponseWriter& out);

  void set_worker(const WorkerInfo& worker);
  void on_collect(std::function<void()> refresh) { metrics_.on_collect(std::move(refresh)); }
  MetricsRegistry& metrics() { return metrics_; }

 private:
  boost::asio::awaitable<http::Response> answer(const http::Request& request, const Path& path);
  http::Response answer_registration(const http::Request& request, const std::string& space);
  http::Response add(const std::string& body, const std::string& space);
  http::Response remove(const std::string& body, const std::string& space);
  http::Response renew(const std::string& body, const std::string& space);
  http::Response describe_worker(const http::Request& request) const;
  // parcels.cc
  boost::asio::awaitable<http::Response> describe_parcel(const std::string& id);
  boost::asio::awaitable<http::Response> release(const http::Request& request, const Path& path);
  boost::asio::awaitable<http::Response> release_here(const std::string& id, bool force);
  boost::asio::awaitable<http::Response> release_everywhere(const std::string& space, const std::string& id,
                                                            bool force);
  template <class Answer>
  struct Question;
  std::shared_ptr<Question<ReleaseState>> ask_release(const std::string& id, bool force);
  http::Response cacheable(std::string body) const;
  void refresh_gauges();

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  const std::shared_ptr<Mailbox> mailbox_;
  const ServiceConfig config_;
  ParcelControl* const parcels_;
  Directory directory_;
  std::string worker_json_;  // empty: no worker yet
  std::string worker_protobuf_;
  uint64_t own_incarnation_ = 0;
  size_t releases_ = 0;
  const TimePoint began_;
  MetricsRegistry metrics_;
};

}  // namespace kvferry::bootstrap
