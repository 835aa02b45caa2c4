// A session as the owner reads it: any bytes behind the preface. The first byte says how many arrive at once.
#include "engine/session/owner_session.h"
#include "test/support/manual_loop.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvferry;
  if (size < 1) return 0;
  test::ManualLoop loop;
  static const std::unique_ptr<GateWords> words = std::move(GateWords::create()).value();
  MemoryKinds kinds;
  kinds.add(make_host_memory());
  Registry registry(std::move(kinds), *words, 16, 1);
  std::vector<std::byte> memory(4096);
  const auto region = registry.add(memory.data(), memory.size(), MemoryKind::host, kRemoteRead);
  Staging staging(loop, 1 << 20);
  tcp::Owner lanes(loop, registry, staging);
  SeededRandom random(1);
  Identity identity;
  identity.engine_id = "owner";
  size_t delivered = 0;
  size_t ended = 0;
  auto [stream, pipe] = test::memory_stream({reinterpret_cast<const char*>(data) + 1, size - 1});
  pipe->read_at_once = data[0] == 0 ? SIZE_MAX : data[0];
  plugin::Guests guests([](uint64_t) { return true; });
  {
    // No local fabric: it would look into the processes that the input names.
    OwnerSession session({loop,
                          identity,
                          registry,
                          lanes,
                          nullptr,
                          {{"ucx", &guests}},
                          nullptr,
                          random,
                          OwnerSession::Limits{},
                          Frames::Limits{size_t{64} << 10, size_t{1} << 20, {}},
                          [&](const ReceivedNotification&) -> Status {
                            if (++delivered > 4) return Error{ErrorCode::resource_exhausted, "full"};
                            return {};
                          },
                          [&](OwnerSession&, const Error&) { ++ended; },
                          [](const OwnerSession&, uint64_t) {}},
                         std::move(stream));
    pipe->pump();
    loop.advance(std::chrono::seconds(10));
    KVF_CHECK(ended == 1);
  }
  KVF_CHECK(guests.quiet_since(UINT64_MAX));  // whoever left is not waited for
  const auto closing = registry.begin_close(region->id);
  KVF_CHECK((*closing)->pins.load() == 0);
  registry.forget(**closing);
  return 0;
}
