#pragma once

#include <rdma/fabric.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/fabric/plugin_kit.h"

namespace kvferry::ofi {

// One object of libfabric's, closed with its owner.
template <class Fid>
class Handle {
 public:
  Handle() = default;
  ~Handle() { close(); }
  Handle(Handle&& other) noexcept : fid_(std::exchange(other.fid_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(fid_, other.fid_);
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  Fid* get() const { return fid_; }
  // Where a function of libfabric's puts the object. REQUIRES: none is held.
  Fid** out() { return &fid_; }
  explicit operator bool() const { return fid_ != nullptr; }
  // False: libfabric does not let go of it, and it stays with libfabric.
  bool close() {
    Fid* const held = std::exchange(fid_, nullptr);
    return held == nullptr || fi_close(&held->fid) == 0;
  }

 private:
  Fid* fid_ = nullptr;
};

struct FreeInfo {
  void operator()(fi_info* info) const { fi_freeinfo(info); }
};
using Info = std::unique_ptr<fi_info, FreeInfo>;

// Writes "<what>: <libfabric's words for -error>" and returns `result`.
inline int32_t say(kvf_text why, std::string_view what, int64_t error, int32_t result = KVF_FAILED) {
  return plugin_kit::say(why, std::string(what) + ": " + fi_strerror(static_cast<int>(-error)), result);
}

}  // namespace kvferry::ofi
