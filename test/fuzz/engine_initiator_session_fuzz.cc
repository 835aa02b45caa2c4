// A session as the initiator reads it, its region table above all. The first byte says how many bytes arrive at once.
#include "engine/session/initiator_session.h"
#include "test/support/manual_loop.h"

namespace {

using namespace kvferry;

class DeadNetwork final : public Network {
 public:
  Result<std::unique_ptr<Listener>> listen(const Address&, Accepted) override {
    return Error{ErrorCode::unavailable, "no network"};
  }
  Result<std::unique_ptr<Stream>> dial(const Address&) override { return Error{ErrorCode::unavailable, "no network"}; }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kMaxRegions = 64;
  if (size < 1) return 0;
  test::ManualLoop loop;
  DeadNetwork network;
  SeededRandom random(1);
  Identity identity;
  identity.engine_id = "initiator";
  size_t ended = 0;
  size_t noted = 0;
  auto [stream, pipe] = test::memory_stream({reinterpret_cast<const char*>(data) + 1, size - 1});
  pipe->read_at_once = data[0] == 0 ? SIZE_MAX : data[0];
  InitiatorSession* raw = nullptr;
  // No local fabric: it would look into the processes that the input names.
  InitiatorSession session(
      {loop, network, identity, random, false, Frames::Limits{size_t{64} << 10, size_t{1} << 20, {}}, kMaxRegions,
       std::chrono::seconds(5), 0,
       [&] {
         raw->notify({"a", "b"}, [&](const Status&) { ++noted; });
         raw->sync([] {});
         raw->fence_lane(1, [] {});
         static_cast<void>(raw->open_lane([] {}));
       },
       [&] { KVF_CHECK(raw->regions()->regions().size() <= kMaxRegions); }, [](const proto::Frame&) {}, nullptr,
       [&](const Error&) { ++ended; }},
      std::move(stream), Address{"127.0.0.1", 1}, "");
  raw = &session;
  pipe->pump();
  loop.run_deferred();
  KVF_CHECK(session.regions()->regions().size() <= kMaxRegions);
  for (const RegionInfo& region : session.regions()->regions())
    KVF_CHECK(session.regions()->find(region.id) != nullptr && region.length > 0);
  loop.advance(std::chrono::seconds(20));
  KVF_CHECK(ended == 1 && noted <= 1);
  return 0;
}
