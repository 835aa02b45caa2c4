// An engine that uses a peer's memory and parcels, and a peer that answers what it likes (records.h): 0 a session
// frame, 1 to 4 bytes of the lane that was dialled first to fourth, 5 as many seconds pass as there are bytes, 6 a read
// and 7 a write are submitted, 8 a parcel is read, 9 what was submitted last is cancelled. Whatever it says: each
// transfer has one outcome by its deadline, and no byte lands outside of what was asked for.
#include <deque>

#include "engine/parcel/reader.h"
#include "test/fuzz/records.h"
#include "test/fuzz/small_cache.h"
#include "test/support/manual_loop.h"

namespace {

using namespace kvferry;

constexpr RegionId kFarRegion = 7;
constexpr size_t kFarBytes = 8192;

class RecordingNetwork final : public Network {
 public:
  Result<std::unique_ptr<Listener>> listen(const Address&, Accepted) override {
    return Error{ErrorCode::unavailable, "nobody listens here"};
  }
  Result<std::unique_ptr<Stream>> dial(const Address&) override {
    auto [stream, pipe] = test::memory_stream();
    dialled.push_back(pipe);
    return std::move(stream);
  }
  std::deque<std::shared_ptr<test::MemoryPipe>> dialled;
};

class World {
 public:
  World() : core_(parts(), config_), reader_(core_, loop_, registry_) {
    const auto open = registry_.add(open_.data(), open_.size(), MemoryKind::host, kPrivate);
    const auto cache = registry_.add(cache_.data(), cache_.size(), MemoryKind::host, kPrivate);
    KVF_CHECK(open.ok() && cache.ok());
    layout_ = std::make_shared<const KvLayout>(test::small_cache(cache->id));
    peer_ = *core_.find_or_add_peer(Address{"10.0.0.1", 7000});
    core_.connect(peer_, [](const Status&) {});
    welcome();
  }

  ~World() {
    loop_.advance(std::chrono::seconds(40));  // beyond every deadline
    for (const auto& task : tasks_) KVF_CHECK(task->completion->done());
    KVF_CHECK(parcels_asked_ == parcels_ended_);
    for (size_t i = 0; i < open_.size(); ++i) KVF_CHECK(i % 128 < 64 || open_[i] == std::byte{0});
    core_.shut_down();
    loop_.run_deferred();
  }

  void happen(uint8_t what, std::string_view bytes) {
    switch (what) {
      case 0:
        hear_frame(bytes);
        break;
      case 1:
      case 2:
      case 3:
      case 4:
        hear(what, bytes);
        break;
      case 5:
        loop_.advance(std::chrono::seconds(bytes.size()));
        break;
      case 6:
      case 7:
        submit(what == 6 ? Operation::read : Operation::write);
        break;
      case 8:
        read_parcel(bytes.size() % 2 == 1);
        break;
      case 9:
        if (!tasks_.empty()) core_.cancel(peer_, tasks_.back(), Error{ErrorCode::cancelled, "cancelled"});
        break;
      default:
        return;
    }
    settle();
  }

 private:
  EngineCore::Parts parts() {
    return {loop_,
            network_,
            random_,
            clock_,
            *words_,
            registry_,
            hub_,
            notifications_,
            nullptr,
            [this](Task task) { loop_.defer(std::move(task)); },
            metrics_,
            config_.logger,
            HostIdentity{"here", 1, 1, 1}};
  }

  static EngineConfig config() {
    EngineConfig config;
    config.engine_id = "initiator";
    config.fabrics = {"tcp"};
    config.logger = make_null_logger();
    return config;
  }

  static Registry registry(GateWords& words) {
    MemoryKinds kinds;
    kinds.add(make_host_memory());
    return {std::move(kinds), words, 16, 1};
  }

  void welcome() {
    proto::Frame frame;
    proto::Welcome& welcome = *frame.mutable_welcome();
    welcome.set_version(1);
    welcome.set_engine_id("owner");
    welcome.set_incarnation(9);
    welcome.set_heartbeat_ms(1000);
    welcome.set_session_id(3);
    for (int i = 0; i < 8; ++i) welcome.add_lane_tokens(std::string(16, static_cast<char>('a' + i)));
    hear_frame(frame.SerializeAsString());
    proto::RegionDelta& delta = *frame.mutable_regions();
    delta.set_reset(true);
    delta.set_complete(true);
    delta.set_version(1);
    proto::Region& region = *delta.add_added();
    region.set_id(kFarRegion);
    region.set_kind(static_cast<uint32_t>(MemoryKind::host));
    region.set_permissions(kRemoteReadWrite);
    region.set_word(kNoWord);
    region.set_base(4096);
    region.set_length(kFarBytes);
    hear_frame(frame.SerializeAsString());
    KVF_CHECK(core_.peer(peer_).session() != nullptr);
  }

  void hear_frame(std::string_view body) {
    const auto length = static_cast<uint32_t>(body.size());
    std::string framed(reinterpret_cast<const char*>(&length), sizeof length);
    hear(0, framed.append(body));
  }

  // Stream 0 is the session that was dialled last, so that the peer can be talked to again after a quarrel.
  void hear(size_t stream, std::string_view bytes) {
    settle();
    if (stream == 0) {
      for (auto& pipe : network_.dialled)
        if (pipe->alive && pipe->output.starts_with("KVFERRY1S")) return feed(*pipe, bytes);
      return;
    }
    for (auto& pipe : network_.dialled)
      if (pipe->alive && pipe->output.starts_with("KVFERRY1L") && --stream == 0) return feed(*pipe, bytes);
  }

  void feed(test::MemoryPipe& pipe, std::string_view bytes) {
    pipe.input.append(bytes);
    pipe.pump();
    settle();
  }

  void settle() {
    for (int turn = 0; turn < 3; ++turn) {
      loop_.run_deferred();
      for (size_t i = 0; i < network_.dialled.size(); ++i)
        if (const auto pipe = network_.dialled[i]; pipe->alive) pipe->pump();
    }
  }

  void submit(Operation operation) {
    if (tasks_.size() >= 16) return;
    auto task = std::make_shared<TransferTask>();
    task->id = tasks_.size() + 1;
    task->job = std::make_shared<Job>();
    task->job->operation = operation;
    std::byte* const local = open_.data() + tasks_.size() * 256;
    task->job->pairs = {{local, kFarRegion, 0, 64}, {local + 128, kFarRegion, 4096, 64}};
    task->job->bytes = 128;
    auto pin = registry_.pin_local(local, 192);
    task->job->local_ops = (*pin)->ops;
    task->job->pins.push_back(std::move(*pin));
    task->submitted = loop_.now();
    task->deadline = task->job->deadline = loop_.now() + std::chrono::seconds(10);
    if (tasks_.size() % 4 == 3) task->notification = Notification{"n", "x"};
    tasks_.push_back(task);
    core_.submit(peer_, task);
  }

  void read_parcel(bool more) {
    if (parcels_asked_ >= 8) return;
    ++parcels_asked_;
    ParcelRead asked;
    asked.transfer_id = "parcel";
    asked.owners = {peer_};
    asked.group_instance_id = "group";
    asked.fingerprint = "fp";
    asked.layout = layout_;
    asked.blocks = {BlockList{0, {2, 0, 6, 1}}};
    asked.more = more;
    asked.deadline = loop_.now() + std::chrono::seconds(10);
    reader_.read(std::move(asked), [this](const ParcelOutcome& outcome) {
      ++parcels_ended_;
      KVF_CHECK(outcome.status.ok() == (outcome.state == ReadState::accepted));
    });
  }

  test::ManualLoop loop_;
  RecordingNetwork network_;
  SeededRandom random_{1};
  SystemClock clock_;
  const std::unique_ptr<GateWords> words_ = std::move(GateWords::create()).value();
  Registry registry_ = registry(*words_);
  CompletionHub hub_{[] {}};
  NotificationQueue notifications_{16, 1 << 16};
  MetricsRegistry metrics_;
  const EngineConfig config_ = config();
  std::vector<std::byte> open_ = std::vector<std::byte>(4096);
  std::vector<std::byte> cache_ = std::vector<std::byte>(2 * test::kCacheLayerBytes);
  std::shared_ptr<const KvLayout> layout_;
  EngineCore core_;
  ParcelReader reader_;
  EngineCore::PeerIndex peer_ = 0;
  std::vector<std::shared_ptr<TransferTask>> tasks_;
  int parcels_asked_ = 0;
  int parcels_ended_ = 0;
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
