// The engine's port: two connections at once, cut anywhere. Each is handed over once, with exactly the bytes behind its
// preface, or counted as a stranger. The first byte says how many bytes arrive at once, the second where the input is
// cut in two.
#include "engine/session/acceptor.h"
#include "test/support/manual_loop.h"

namespace {

using namespace kvferry;

class OnePort final : public Network {
 public:
  class Open final : public Listener {
   public:
    Address address() const override { return Address{"127.0.0.1", 1}; }
  };
  Result<std::unique_ptr<Listener>> listen(const Address&, Accepted accept) override {
    accepted = std::move(accept);
    return std::unique_ptr<Listener>(std::make_unique<Open>());
  }
  Result<std::unique_ptr<Stream>> dial(const Address&) override { return Error{ErrorCode::unavailable, "no network"}; }
  Accepted accepted;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  test::ManualLoop loop;
  OnePort network;
  MetricsRegistry metrics;
  Complaints complaints(loop, make_null_logger(), metrics);
  Counter& strangers = metrics.counter("strangers", "");
  int sessions = 0;
  int lanes = 0;
  std::vector<std::unique_ptr<Stream>> taken;
  {
    Acceptor acceptor(
        loop, {}, complaints, strangers,
        [&](std::unique_ptr<Stream> stream) {
          ++sessions;
          taken.push_back(std::move(stream));
        },
        [&](std::unique_ptr<Stream> stream, const LanePreface& lane) {
          ++lanes;
          KVF_CHECK(lane.token.size() == Preface::kTokenBytes);
          taken.push_back(std::move(stream));
        });
    KVF_CHECK(acceptor.listen(network, Address{"127.0.0.1", 1}).ok());
    const std::string_view input(reinterpret_cast<const char*>(data) + 2, size - 2);
    const size_t cut = data[1] % (input.size() + 1);
    std::vector<std::shared_ptr<test::MemoryPipe>> pipes;
    for (const std::string_view part : {input.substr(0, cut), input.substr(cut)}) {
      auto [stream, pipe] = test::memory_stream(part);
      pipe->read_at_once = data[0] == 0 ? SIZE_MAX : data[0];
      pipes.push_back(pipe);
      network.accepted(std::move(stream));
    }
    for (const auto& pipe : pipes) pipe->pump();
    loop.advance(std::chrono::seconds(10));
    for (const auto& pipe : pipes) KVF_CHECK(!pipe->alive || pipe->handler == nullptr);
  }
  KVF_CHECK(sessions + lanes + static_cast<int>(strangers.value()) == 2);
  loop.run_deferred();
  return 0;
}
