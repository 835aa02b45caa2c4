#include "test/support/devices.h"

#include "common/check.h"
#include "engine/memory/fake_device.h"
#include "test/support/cuda_device.h"

namespace kvferry::test {
namespace {

class Fake final : public TestDevice {
 public:
  std::shared_ptr<MemoryOps> ops() override { return device_; }
  std::byte* allocate(size_t length) override {
    auto allocated = device_->allocate(length);
    KVF_CHECK(allocated.ok());
    return *allocated;
  }
  void store(std::byte* device, const void* from, size_t length) override {
    KVF_CHECK(device_->store(device, from, length).ok());
  }
  void load(void* into, const std::byte* device, size_t length) const override {
    KVF_CHECK(device_->load(into, device, length).ok());
  }
  EventId create_event() override { return device_->create_event(); }
  void signal(EventId event) override { device_->signal(event); }
  void destroy_event(EventId event) override { device_->destroy_event(event); }

 private:
  std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
};

}  // namespace

std::shared_ptr<TestDevice> make_device(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::host:
      return nullptr;
    case MemoryKind::cuda:
      return std::make_shared<CudaDevice>();
    case MemoryKind::fake:
      return std::make_shared<Fake>();
  }
  return nullptr;
}

}  // namespace kvferry::test
