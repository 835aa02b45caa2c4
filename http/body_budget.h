#pragma once

#include <cstdint>
#include <utility>

namespace kvferry::http {

// Bytes that the bodies of one server's requests take together, from when they come until the requests are answered.
// Those that are only announced do not count: nobody takes places by a promise. On the server's loop.
struct BodyBudget {
  uint64_t limit = 0;  // 0: none
  uint64_t held = 0;
};

// What one connection's request takes of it.
class BodyShare {
 public:
  explicit BodyShare(BodyBudget& budget) : budget_(budget) {}
  ~BodyShare() { give_back(); }
  BodyShare(const BodyShare&) = delete;
  BodyShare& operator=(const BodyShare&) = delete;

  // The body has `bytes` now, which is no less than before. False: they are not to be had, and the share stays as it
  // is.
  bool grow_to(uint64_t bytes) {
    const uint64_t more = bytes - held_;
    if (budget_.limit > 0 && budget_.held + more > budget_.limit) return false;
    budget_.held += more;
    held_ = bytes;
    return true;
  }
  void give_back() { budget_.held -= std::exchange(held_, 0); }

 private:
  BodyBudget& budget_;
  uint64_t held_ = 0;
};

}  // namespace kvferry::http
