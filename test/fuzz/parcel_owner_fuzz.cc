// Two readers' frames and a lane's fetches at an owner of parcels, in any order and with time passing between them
// (records.h): 0 and 1 a session frame of a reader, 2 a claim as the request of a fetch, 3 raw bytes of a lane, 4 as
// many seconds pass as there are bytes, 5 a publication of what was announced, 6 a release here, 7 a reader leaves.
#include <map>

#include "common/metrics.h"
#include "engine/parcel/owner.h"
#include "test/fuzz/records.h"
#include "test/fuzz/small_cache.h"
#include "test/support/manual_loop.h"

namespace {

using namespace kvferry;

struct Reader {
  std::unique_ptr<OwnerSession> session;
  std::shared_ptr<test::MemoryPipe> pipe;
};

class World {
 public:
  World() {
    MemoryKinds kinds;
    kinds.add(make_host_memory());
    registry_.emplace(std::move(kinds), *words_, 16, 1);
    const auto region = registry_->add(memory_.data(), memory_.size(), MemoryKind::host, kPrivate);
    region_ = region->id;
    lanes_.emplace(loop_, *registry_, staging_);
    owner_ = std::make_unique<ParcelOwner>(
        ParcelOwner::Parts{loop_, *words_, *registry_, *lanes_, random_, metrics_, events_}, small_limits());
    KVF_CHECK(owner_->set_cache("instance", test::small_cache(region_)).ok());
    publish("published", false);
    publish("digested", true);
    KVF_CHECK(owner_->announce("announced", std::chrono::seconds(60)).ok());
    add_lane();
    come(0);
    come(1);
  }

  ~World() {
    for (Reader& reader : readers_) leave(reader);
    lanes_->drop_guest(guest_);
    loop_.run_deferred();
    owner_->shut_down();
    take_events();
    for (const auto& [id, times] : published_) KVF_CHECK(released_[id] == times);  // I2
    owner_.reset();
    loop_.run_deferred();
    const auto closing = registry_->begin_close(region_);
    KVF_CHECK((*closing)->pins.load() == 0);
    registry_->forget(**closing);
  }

  void happen(uint8_t what, std::string_view bytes) {
    switch (what) {
      case 0:
      case 1:
        return hear(readers_[what], bytes);
      case 2: {
        tcp::Header header;
        header.type = tcp::FrameType::fetch;
        header.op = next_op_++;
        header.table_bytes = static_cast<uint32_t>(bytes.size());
        std::string frame;
        tcp::encode_header(header, frame);
        return hear_lane(frame + std::string(bytes));
      }
      case 3:
        return hear_lane(bytes);
      case 4:
        loop_.advance(std::chrono::seconds(bytes.size()));
        break;
      case 5:
        publish("announced", false);
        break;
      case 6:
        owner_->release(std::string(bytes.substr(0, 64)), bytes.size() % 2 == 1);
        break;
      case 7:
        leave(readers_[bytes.size() % 2]);
        break;
      default:
        return;
    }
    settle();
  }

 private:
  static ParcelLimits small_limits() {
    ParcelLimits limits;
    limits.parcels = 4;
    limits.claims_per_parcel = 3;
    limits.waiting_per_reader = 3;
    limits.kept_verdicts = 4;
    limits.tombstones = 4;
    return limits;
  }

  void publish(const std::string& id, bool digest) {
    ParcelSpec spec;
    spec.transfer_id = id;
    spec.blocks = {BlockList{0, {3, 1, 4, 5}}};
    spec.tokens = 15;
    spec.fingerprint = "fp";
    spec.lease = std::chrono::seconds(60);
    spec.digest = digest;
    if (owner_->publish(std::move(spec)).ok()) ++published_[id];
  }

  void come(size_t index) {
    auto [stream, pipe] = test::memory_stream();
    Reader& reader = readers_[index];
    reader.pipe = pipe;
    reader.session =
        std::make_unique<OwnerSession>(OwnerSession::Context{loop_,
                                                             identity_,
                                                             *registry_,
                                                             *lanes_,
                                                             nullptr,
                                                             {},
                                                             owner_.get(),
                                                             random_,
                                                             OwnerSession::Limits{},
                                                             Frames::Limits{size_t{64} << 10, size_t{1} << 20, {}},
                                                             [](const ReceivedNotification&) -> Status { return {}; },
                                                             [](OwnerSession&, const Error&) {},
                                                             [](const OwnerSession&, uint64_t) {}},
                                       std::move(stream));
    proto::Frame frame;
    proto::Hello& hello = *frame.mutable_hello();
    hello.set_version_min(1);
    hello.set_version_max(1);
    hello.set_engine_id("reader-" + std::to_string(index));
    hello.set_incarnation(1);
    hello.set_heartbeat_ms(1000);
    hear(reader, frame.SerializeAsString());
    KVF_CHECK(reader.session->incarnation() == 1);
  }

  void leave(Reader& reader) {
    if (!reader.session) return;
    reader.session->end(Error{ErrorCode::cancelled, "leaves"});
    reader.session.reset();
  }

  void add_lane() {
    auto [stream, pipe] = test::memory_stream();
    guest_pipe_ = pipe;
    lanes_->adopt(guest_, std::move(stream), 1);
  }

  void hear(Reader& reader, std::string_view body) {
    if (!reader.session) return;
    const auto length = static_cast<uint32_t>(body.size());
    reader.pipe->input.append(reinterpret_cast<const char*>(&length), sizeof length).append(body);
    reader.pipe->pump();
    settle();
  }

  void hear_lane(std::string_view bytes) {
    if (!guest_pipe_->alive) return;
    guest_pipe_->input.append(bytes);
    guest_pipe_->pump();
    settle();
  }

  void settle() {
    loop_.run_deferred();
    if (guest_pipe_->alive) guest_pipe_->pump();
    loop_.run_deferred();
    for (Reader& reader : readers_)
      if (reader.pipe) reader.pipe->output.clear();
    guest_pipe_->output.clear();
    take_events();
  }

  void take_events() {
    for (const ParcelReleased& event : events_.take()) ++released_[event.transfer_id];
  }

  class WelcomeGuest final : public Guest {
   public:
    const std::string& engine_id() const override { return id_; }
    uint64_t incarnation() const override { return 1; }
    bool still_welcome() override { return true; }

   private:
    const std::string id_ = "reader-0";
  };

  static GateWords& shared_words() {
    static const std::unique_ptr<GateWords> words = std::move(GateWords::create()).value();
    return *words;
  }

  test::ManualLoop loop_;
  GateWords* const words_ = &shared_words();
  std::vector<std::byte> memory_ = std::vector<std::byte>(2 * test::kCacheLayerBytes);
  std::optional<Registry> registry_;
  RegionId region_ = 0;
  Staging staging_{loop_, 1 << 20};
  std::optional<tcp::Owner> lanes_;
  SeededRandom random_{1};
  MetricsRegistry metrics_;
  CompletionHub hub_{[] {}};
  ParcelEvents events_{hub_};
  Identity identity_ = [] {
    Identity identity;
    identity.engine_id = "owner";
    return identity;
  }();
  std::unique_ptr<ParcelOwner> owner_;
  std::array<Reader, 2> readers_;
  WelcomeGuest guest_;
  std::shared_ptr<test::MemoryPipe> guest_pipe_;
  uint64_t next_op_ = 1;
  std::map<std::string, int> published_, released_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  World world;
  size_t records = 0;
  kvferry::test::for_each_record({reinterpret_cast<const char*>(data), size},
                                 [&](uint8_t what, std::string_view bytes) {
                                   if (++records <= 64) world.happen(what, bytes);
                                 });
  return 0;
}
