// A lane of the tcp fabric as its owner reads it: whatever a peer sends, the engine neither crashes nor writes outside
// of the region that is open for writes. The first byte says how many bytes arrive at once.
#include <vector>

#include "engine/fabric/tcp/owner.h"
#include "test/support/manual_loop.h"

namespace {

using namespace kvferry;

class WelcomeGuest final : public Guest {
 public:
  const std::string& engine_id() const override { return id_; }
  uint64_t incarnation() const override { return 1; }
  bool still_welcome() override { return true; }

 private:
  const std::string id_ = "fuzz";
};

void check(const std::vector<std::byte>& bytes, std::byte value) {
  for (const std::byte byte : bytes) KVF_CHECK(byte == value);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  test::ManualLoop loop;
  static const std::unique_ptr<GateWords> words = std::move(GateWords::create()).value();
  MemoryKinds kinds;
  kinds.add(make_host_memory());
  Registry registry(std::move(kinds), *words, 16, 1);
  std::vector<std::byte> open(4096);
  std::vector<std::byte> readable(4096, std::byte{2});
  std::vector<std::byte> closed(4096, std::byte{3});
  KVF_CHECK(registry.add(open.data(), open.size(), MemoryKind::host, kRemoteReadWrite).ok());
  KVF_CHECK(registry.add(readable.data(), readable.size(), MemoryKind::host, kRemoteRead).ok());
  KVF_CHECK(registry.add(closed.data(), closed.size(), MemoryKind::host, kPrivate).ok());
  Staging staging(loop, 1 << 20);
  tcp::Owner owner(loop, registry, staging);
  WelcomeGuest guest;
  auto [stream, pipe] = test::memory_stream({reinterpret_cast<const char*>(data) + 1, size - 1});
  pipe->read_at_once = data[0] == 0 ? SIZE_MAX : data[0];
  owner.adopt(guest, std::move(stream), 1);
  pipe->pump();
  loop.run_deferred();
  pipe->ended = true;
  pipe->pump();
  loop.run_deferred();
  check(readable, std::byte{2});
  check(closed, std::byte{3});
  owner.drop_guest(guest);
  loop.run_deferred();
  for (const RegionInfo& region : registry.snapshot()) {
    const auto closing = registry.begin_close(region.id);
    KVF_CHECK(closing.ok() && (*closing)->pins.load() == 0);
    registry.forget(**closing);
  }
  return 0;
}
