#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <vector>

#include "test/support/cuda_device.h"
#include "test/support/engines.h"

namespace kvferry::test {

// A GPU of the fake driver, and a kind made anew for each test.
class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (fake_ == nullptr) GTEST_SKIP() << "steers the fake driver, and KVFERRY_CUDA_DRIVER names another";
    fake_->refuse_kernels(false);
    fake_->withhold_sync_memops(false);
    fake_->set_rdma({});
    fake_->fail_at(0);
  }
  void TearDown() override {
    if (fake_ != nullptr) fake_->fail_at(0);
  }

  static cuda::Options options(cuda::Gather gather = cuda::Gather::automatic) {
    return {cuda_driver(), gather, test_kernel()};
  }
  // Until it has landed, or failed.
  static Status finish(MemoryOps& ops, CopyId copy) {
    for (int polls = 0; polls < 1000; ++polls) {
      const auto done = ops.copy_done(copy);
      if (!done) return done.error();
      if (*done) return {};
    }
    return Error{ErrorCode::internal, "the copy does not land"};
  }
  static Status copy(MemoryOps& ops, CopyDirection direction, const std::vector<CopySpan>& spans) {
    KVF_ASSIGN_OR_RETURN(const CopyId id, ops.start_copy(direction, spans));
    return finish(ops, id);
  }
  // `count` spans of `length` bytes, `step` apart on the device and one after another on the host.
  static std::vector<CopySpan> scattered(std::byte* device, std::byte* host, size_t count, size_t length, size_t step) {
    std::vector<CopySpan> spans;
    for (size_t i = 0; i < count; ++i) spans.push_back({device + i * step, host + i * length, length});
    return spans;
  }

  const fake_cuda::Control* fake_ = fake_control();
  CudaDevice device_;
};

}  // namespace kvferry::test
