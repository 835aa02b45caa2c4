#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "bootstrap/client.h"
#include "common/log.h"
#include "http/client.h"
#include "proxy/backends.h"
#include "proxy/background.h"
#include "proxy/legs.h"

namespace kvferry::proxy {

struct ReleaseCounts {
  size_t pinned = 0;     // held by requests, or not yet acknowledged
  size_t releasing = 0;  // not yet acknowledged
  Duration oldest{0};    // age of the oldest pinned one
  uint64_t released = 0;
  uint64_t given_up = 0;  // the lease ended first
};

// One parcel that is held, or whose release is not acknowledged.
struct PinnedParcel {
  std::string transfer_id;
  std::string prefiller;
  std::string decoder;  // empty: none was told yet
  Duration age{0};
};

class Releases;

// A parcel that a prefiller may be holding for one request. However the request ends, also when its coroutine is just
// destroyed, the parcel is released, unless settled() says that the decoder has fetched it.
class HeldParcel {
 public:
  HeldParcel();
  HeldParcel(HeldParcel&& other) noexcept;
  HeldParcel& operator=(HeldParcel&& other) noexcept;
  ~HeldParcel();

  // The prefiller has answered: from here on it pins blocks. `handover` is what the decoder would be told.
  void answered(const Handover& handover);
  // The decoder that was told, to be asked first for a release ping.
  void told(std::shared_ptr<Backend> decoder);
  void settled();
  void release();
  explicit operator bool() const { return record_ != nullptr; }

 private:
  friend class Releases;
  struct Record;
  using Owner = std::shared_ptr<Releases*>;  // the pointer is cleared when the Releases ends first
  HeldParcel(Owner owner, std::unique_ptr<Record> record);
  Owner owner_;
  std::unique_ptr<Record> record_;
};

// Releases parcels until acknowledged or until the owner's lease has ended anyway.
//   bootstrap server knows parcels -> DELETE, again on 202 and errors
//   it does not (vLLM's workers)   -> release ping to a decoder, if the prefiller had answered; else nothing is pinned
// On the loop.
class Releases {
 public:
  struct Config {
    Dialect dialect = Dialect::mooncake;
    Duration lease = std::chrono::seconds(480);
    std::string api_key;
  };
  Releases(boost::asio::io_context& loop, Background& background, http::Deadlines& deadlines, const Backends& backends,
           bootstrap::Client& bootstrap, std::shared_ptr<Logger> log, Config config);
  ~Releases();

  // Before the prefiller is sent the request. `authorization`: the client's own header, for a ping in its name.
  HeldParcel hold(std::shared_ptr<Backend> prefiller, std::string transfer_id, std::string authorization);
  ReleaseCounts counts() const;
  // The oldest first, at most `limit`.
  std::vector<PinnedParcel> pinned(size_t limit) const;

 private:
  friend class HeldParcel;
  struct Job;
  void start(std::unique_ptr<HeldParcel::Record> record);
  boost::asio::awaitable<void> run(std::shared_ptr<Job> job);
  boost::asio::awaitable<bool> attempt(const HeldParcel::Record& record);
  boost::asio::awaitable<bool> ping(const HeldParcel::Record& record);
  std::shared_ptr<Backend> ping_target(const HeldParcel::Record& record) const;

  boost::asio::io_context& loop_;
  Background& background_;
  http::Deadlines& deadlines_;
  const Backends& backends_;
  bootstrap::Client& bootstrap_;
  const std::shared_ptr<Logger> log_;
  const Config config_;
  const HeldParcel::Owner self_;
  std::list<const HeldParcel::Record*> pinned_;  // oldest first
  size_t releasing_ = 0;
  uint64_t released_ = 0;
  uint64_t given_up_ = 0;
};

}  // namespace kvferry::proxy
