#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "test/support/devices.h"

namespace kvferry::test {

// Memory of any kind, filled and inspected without caring which.
class Buffer {
 public:
  Buffer(std::shared_ptr<TestDevice> device, size_t bytes) : device_(std::move(device)), bytes_(bytes) {
    if (device_) {
      base_ = device_->allocate(bytes);
    } else {
      host_.resize(bytes);
      base_ = host_.data();
    }
  }
  std::byte* base() const { return base_; }
  size_t size() const { return bytes_; }
  MemoryKind kind() const { return device_ ? device_->kind() : MemoryKind::host; }

  void store(const std::vector<std::byte>& bytes) {
    if (device_)
      device_->store(base_, bytes.data(), bytes.size());
    else
      std::memcpy(base_, bytes.data(), bytes.size());
  }
  std::vector<std::byte> load() const {
    std::vector<std::byte> out(bytes_);
    if (device_)
      device_->load(out.data(), base_, bytes_);
    else
      std::memcpy(out.data(), base_, bytes_);
    return out;
  }
  // By memcmp: the loop that == is costs minutes under ThreadSanitizer.
  bool holds(const std::vector<std::byte>& expected) const {
    return expected.size() == bytes_ && std::memcmp(load().data(), expected.data(), bytes_) == 0;
  }

 private:
  std::shared_ptr<TestDevice> device_;
  size_t bytes_;
  std::vector<std::byte> host_;
  std::byte* base_ = nullptr;
};

// Bytes that tell their place and `seed`.
inline std::vector<std::byte> pattern(size_t bytes, uint64_t seed) {
  std::vector<std::byte> out(bytes);
  std::byte* const data = out.data();
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>((i * 2654435761u + seed * 40503u) >> 7);
  return out;
}

// The value, or a failed test that says why there is none.
template <class T>
T must(Result<T> result) {
  if (!result.ok()) ADD_FAILURE() << result.error().to_string();
  return std::move(result).value();
}

}  // namespace kvferry::test
