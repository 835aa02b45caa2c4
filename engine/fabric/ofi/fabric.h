#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "engine/fabric/ofi/bell.h"
#include "engine/fabric/ofi/door.h"
#include "engine/fabric/ofi/port.h"
#include "engine/fabric/ofi/settings.h"

// The ofi fabric: RMA by libfabric's endpoints of type RDM. One domain an engine; for each connection a Port at either
// side (design.md).

struct kvf_memory {
  kvferry::ofi::Handle<fid_mr> registration;
  uint64_t base = 0;
};

// A key of a peer's region.
struct kvf_key {
  uint64_t key = 0;
  uint64_t base = 0;  // what the provider counts remote addresses from
};

// One fabric opened for one engine. See plugin_abi.h for who may call what.
struct kvf_fabric {
 public:
  static int32_t open(const kvf_host& host, const kvf_open_params& params, kvf_fabric** out, kvf_facts& facts,
                      kvf_text why);
  ~kvf_fabric();

  int wake_fd() const { return epoll_; }
  int32_t arm();
  uint32_t progress();
  int32_t listen(kvf_text address, kvf_text why);
  // Ends that client's connection. True: nothing that came by it is applied any more.
  bool fence(uint64_t client) { return door_ == nullptr || door_->fence(client); }

  const std::string& provider() const { return settings_.provider(); }
  const kvf_host& host() const { return host_; }
  uint64_t client() const { return client_; }
  const fi_info& info() const { return *info_; }
  fi_info* mutable_info() { return info_.get(); }  // libfabric takes no const
  fid_fabric* fabric() const { return opened_->fabric.get(); }
  fid_domain* domain() const { return opened_->domain.get(); }
  const std::shared_ptr<kvferry::ofi::Opened>& opened() const { return opened_; }
  // Its queues wake nobody: they are looked at when a peer rings, and by the clock while something is under way.
  bool polls() const { return settings_.is_shared_memory(); }

  // From any thread.
  int32_t map(const kvf_range& range, kvf_memory** out, kvf_text why);
  void unmap(kvf_memory* memory);
  int32_t pack_key(const kvf_memory& memory, void* out, size_t* size, kvf_text why) const;
  bool needs_descriptors() const { return (info_->domain_attr->mr_mode & FI_MR_LOCAL) != 0; }
  // Memory of this process's own use, where the provider wants that registered; empty otherwise.
  int32_t register_own(void* base, size_t length, uint64_t access, kvferry::ofi::Handle<fid_mr>& out, kvf_text why);

  // Of ports: whether the loop is woken by it; that it may have something to do; that it is gone.
  bool watch(kvferry::ofi::Port& port);
  void touch(kvferry::ofi::Port& port) { busy_.insert(&port); }
  // The same of one that was posted to.
  void stir(kvferry::ofi::Port& port) {
    touch(port);
    stirred_ = true;
  }
  // Rings at the owner by that name if there may be something new. False: the connection is none any more.
  bool ring(const kvferry::ofi::Name& owner, uint64_t number) const {
    return bell_->gone().count(number) == 0 && (!stirred_ || bell_->ring(owner, number));
  }
  void forget(kvferry::ofi::Port& port);
  // Who waits for something that wakes nobody is tended in every progress(), and soon, until tend() says no.
  void want_turns(kvferry::ofi::Tended& tended) { restless_.insert(&tended); }
  void want_none(kvferry::ofi::Tended& tended) { restless_.erase(&tended); }

 private:
  kvf_fabric(const kvf_host& host, const kvf_open_params& params)
      : host_(host), settings_(kvferry::ofi::Settings::of(params)), client_(params.client) {}
  int32_t start(const char* host, kvf_text why);
  int32_t find(const char* host, kvf_text why);
  int look_for(const char* host, uint64_t capabilities, int memory_modes);
  bool watch(const kvferry::ofi::Bell& bell);
  bool look_who_is_ready();  // whether the clock has ticked
  bool hear_bells();
  int register_memory(const kvf_range& range, uint64_t access, kvferry::ofi::Handle<fid_mr>& out);

  const kvf_host host_;
  const kvferry::ofi::Settings settings_;
  const uint64_t client_;
  kvferry::ofi::Info info_;
  const std::shared_ptr<kvferry::ofi::Opened> opened_ = std::make_shared<kvferry::ofi::Opened>();
  int epoll_ = -1;  // of the ports' descriptors and the clock's
  int clock_ = -1;
  bool clock_set_ = false;
  std::set<kvferry::ofi::Port*> busy_;
  std::set<kvferry::ofi::Port*> polled_;
  bool stirred_ = false;  // something was posted, has ended, or may have been missed, since bells were rung
  std::unique_ptr<kvferry::ofi::Bell> bell_;       // to ring at others
  std::unique_ptr<kvferry::ofi::Bell> door_bell_;  // at which others ring
  std::set<kvferry::ofi::Tended*> restless_;
  std::unique_ptr<kvferry::ofi::Door> door_;
  std::mutex memory_mutex_;
  std::set<kvf_memory*> memory_;  // GUARDED_BY(memory_mutex_)
};
