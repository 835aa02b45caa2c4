#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/log.h"
#include "engine/config.h"
#include "engine/fabric/plugin/guests.h"
#include "engine/fabric/plugin/library.h"
#include "engine/io/epoll_loop.h"
#include "engine/io/topology.h"
#include "engine/memory/registry.h"

namespace kvferry::plugin {

// What a Node tells of an operation, and of an endpoint, that a path began. On loop, outside of the plug-in's calls.
class Posted {
 public:
  virtual ~Posted() = default;
  virtual void ended(int32_t result, const std::string& why) = 0;
};
class EndpointUser {
 public:
  virtual ~EndpointUser() = default;
  virtual void lost(const std::string& why) = 0;
};

// A plug-in's fabric, opened for one engine at one device: its place in the loop, the registered memory that it knows,
// and who may connect to it. On loop only, but for what RegionMapper says.
class Node final : public RegionMapper, private FdHandler {
 public:
  // `host`: numeric, where peers shall connect; `rail`: its number among those of this fabric; `topology`: of all of
  // them. An Error says why the fabric is not viable here.
  static Result<std::unique_ptr<Node>> open(EpollLoop& loop, std::shared_ptr<const Library> library,
                                            const std::vector<FabricSetting>& settings, const std::string& host,
                                            size_t rail, uint64_t client, std::shared_ptr<const Topology> topology);
  // REQUIRES: no path uses it, no region is mapped.
  ~Node() override;

  // The fabric's name, and in what peers are told the rail's number behind it: each is a fabric of its own to them.
  const char* name() const { return table_.name; }
  const char* fabric() const override { return label_.c_str(); }
  size_t rail() const { return rail_; }
  const NetworkDevice& device() const { return device_; }
  const Topology& topology() const { return *topology_; }
  Result<Mapping> map(const FabricRange& range) override;
  void unmap(void* handle) override;

  const kvf_fabric_table& table() const { return table_; }
  kvf_fabric* handle() const { return fabric_; }
  bool enforces_keys() const { return facts_.enforces_keys != 0; }
  uint64_t longest_operation() const { return facts_.longest_operation; }
  const std::string& address() const { return address_; }
  uint64_t client() const { return client_; }
  Guests& guests() { return guests_; }
  std::string describe() const;

  // One path to an owner at a time: to an owner a client is one connection, and its next one is the end of the first.
  bool take(const std::string& owner) { return owners_.insert(owner).second; }
  void give_back(const std::string& owner) { owners_.erase(owner); }

  // One progress call, and all news of it. Also from within news.
  uint32_t turn();
  // Whoever has begun something calls this: progress is made before the loop sleeps, and its descriptor is armed.
  void schedule();

  uint64_t add(EndpointUser* user);
  void remove(uint64_t endpoint) { users_.erase(endpoint); }

 private:
  struct News {
    uint64_t operation;  // 0: `endpoint` is lost
    uint64_t endpoint;
    int32_t result;
    std::string why;
  };
  Node(EpollLoop& loop, std::shared_ptr<const Library> library, size_t rail, uint64_t client,
       std::shared_ptr<const Topology> topology);
  Status start(const std::vector<FabricSetting>& settings, const std::string& host);
  void on_fd_ready(uint32_t) override { run(); }
  void run();
  void tell();

  EpollLoop& loop_;
  const std::shared_ptr<const Library> library_;
  const kvf_fabric_table& table_;
  const size_t rail_;
  const std::string label_;
  const uint64_t client_;
  const kvf_host host_;
  kvf_fabric* fabric_ = nullptr;
  kvf_facts facts_{};
  const std::shared_ptr<const Topology> topology_;
  NetworkDevice device_;
  std::string address_;
  int wake_fd_ = -1;
  Guests guests_;
  std::set<std::string> owners_;
  std::unordered_map<uint64_t, EndpointUser*> users_;
  uint64_t next_endpoint_ = 1;
  std::deque<News> news_;  // bounded by the operations in flight
  bool scheduled_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// Room for a plug-in to say why something failed.
class Why {
 public:
  kvf_text text() { return {buffer_, sizeof buffer_}; }
  std::string str() const { return buffer_; }

 private:
  char buffer_[256] = "";
};

}  // namespace kvferry::plugin
