// A process of the parcel chaos test.
//
//   kvf-parcel-actor owner NAME LISTEN FABRICS SEED     says: ready ADDRESS INSTANCE
//     publish N        that many parcels, as blocks allow   says for each: parcel ID SERIAL BLOCKS
//     stop             no more of them
//     facts            says: facts FREE_BLOCKS BLOCKS PARCELS CLAIMS SESSIONS DESCRIPTORS UNPUBLISHED
//   kvf-parcel-actor reader NAME LISTEN FABRICS SEED    says: ready ADDRESS INSTANCE
//     read ADDRESS INSTANCE ID SERIAL BLOCKS MS          says: end ID STATE LATE_MS, or bad ID TEXT
//     facts            as above
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>

#include "engine/parcel.h"
#include "test/system/parcels/actor.h"

namespace kvferry::test {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

void say(const std::string& line) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::cout << line << std::endl;
}

// How long this process was stopped so far: time that its threads could not see.
class Stops {
 public:
  Stops() : thread_([this] { watch(); }) {}
  ~Stops() {
    over_.store(true);
    thread_.join();
  }
  milliseconds so_far() const { return milliseconds(stopped_ms_.load()); }

 private:
  void watch() {
    auto last = Clock::now();
    while (!over_.load()) {
      ::poll(nullptr, 0, 10);
      const auto now = Clock::now();
      const auto gap = std::chrono::duration_cast<milliseconds>(now - last);
      if (gap > milliseconds(100)) stopped_ms_.fetch_add(gap.count());
      last = now;
    }
  }
  std::atomic<bool> over_{false};
  std::atomic<int64_t> stopped_ms_{0};
  std::thread thread_;
};

int64_t gauge(const Engine& engine, const std::string& name) {
  const std::string text = "\n" + engine.metrics();
  const size_t at = text.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::stoll(text.substr(at + name.size() + 2));
}

class Actor {
 public:
  Actor(std::unique_ptr<Engine> engine, std::string name, uint32_t blocks, uint64_t seed)
      : name_(std::move(name)), random_(seed), cache_(blocks), engine_(std::move(engine)), parcels_(*engine_) {
    region_ = engine_->register_memory(cache_.base(), cache_.bytes(), MemoryKind::host, kPrivate).value();
    instance_ = name_ + "@" + std::to_string(::getpid());
    KVF_CHECK(parcels_.set_cache(instance_, chaos_layout(region_.id(), blocks)).ok());
    fd_ = engine_->completion_fd().value();
    say("ready " + engine_->address() + " " + instance_);
  }
  virtual ~Actor() = default;

  void run() {
    std::string pending;
    while (true) {
      pollfd wanted[2] = {{STDIN_FILENO, POLLIN, 0}, {fd_, POLLIN, 0}};
      ::poll(wanted, 2, 2);
      if (wanted[0].revents != 0) {
        char bytes[4096];
        const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof bytes);
        if (count <= 0) return;
        pending.append(bytes, static_cast<size_t>(count));
        for (size_t end = 0; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1))
          on_line(pending.substr(0, end));
      }
      engine_->take_completed();
      turn();
    }
  }

 protected:
  virtual void on_line(const std::string& line) = 0;
  virtual void turn() = 0;
  void say_facts(size_t unpublished) {
    size_t descriptors = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++descriptors;
    std::ostringstream out;
    out << "facts " << cache_.free_blocks() << " " << cache_.blocks() << " " << gauge(*engine_, "kvferry_parcels")
        << " " << gauge(*engine_, "kvferry_parcel_claims") << " " << gauge(*engine_, "kvferry_sessions") << " "
        << descriptors << " " << unpublished;
    say(out.str());
  }
  uint64_t draw(uint64_t below) { return random_() % below; }

  const std::string name_;
  std::string instance_;
  std::mt19937_64 random_;
  ChaosCache cache_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  Parcels parcels_;
  int fd_ = -1;
};

class Owner final : public Actor {
 public:
  using Actor::Actor;

 private:
  void on_line(const std::string& line) override {
    std::istringstream words(line);
    std::string verb;
    size_t count = 0;
    words >> verb >> count;
    if (verb == "publish") wanted_ += count;
    if (verb == "stop") wanted_ = 0;
    if (verb == "facts") say_facts(wanted_);
  }

  void turn() override {
    for (const ParcelReleased& one : parcels_.take_released()) {
      auto entry = held_.extract(one.transfer_id);
      if (entry.empty()) {
        say("bad " + one.transfer_id + " was given back twice");
        continue;
      }
      cache_.give_back(entry.mapped());
    }
    for (auto due = forced_.begin(); due != forced_.end() && due->first <= Clock::now(); due = forced_.erase(due))
      parcels_.release(due->second, true);
    for (; wanted_ > 0; --wanted_)
      if (!publish_one()) break;
  }

  bool publish_one() {
    std::vector<uint32_t> blocks = cache_.take(1 + draw(12));
    if (blocks.empty()) return false;
    const uint64_t serial = random_();
    cache_.fill(blocks, serial);
    ParcelSpec spec;
    spec.transfer_id = instance_ + "/" + std::to_string(next_++);
    spec.blocks = {{0, blocks}};
    spec.tokens = blocks.size() * kChaosTokens;
    spec.fingerprint = "fp" + std::to_string(serial);
    spec.lease = milliseconds(200 + draw(1500));
    spec.digest = draw(4) == 0;
    const std::string id = spec.transfer_id;
    held_.emplace(id, blocks);
    if (const Status status = parcels_.publish(std::move(spec)); !status.ok()) {
      say("bad " + id + " was refused: " + status.error().to_string());
      return false;
    }
    if (draw(5) == 0) forced_.emplace(Clock::now() + milliseconds(draw(30)), id);
    say("parcel " + id + " " + std::to_string(serial) + " " + std::to_string(blocks.size()));
    return true;
  }

  size_t wanted_ = 0;
  uint64_t next_ = 0;
  std::map<std::string, std::vector<uint32_t>> held_;
  std::multimap<Clock::time_point, std::string> forced_;
};

class Reader final : public Actor {
 public:
  using Actor::Actor;

 private:
  struct Reading {
    std::string id;
    uint64_t serial = 0;
    std::vector<uint32_t> blocks;
    Clock::time_point deadline;
    milliseconds stopped{0};  // when it began
    ParcelReading reading;
  };

  void on_line(const std::string& line) override {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "facts") return say_facts(readings_.size());
    std::string address;
    ParcelReadRequest request;
    Reading made;
    size_t count = 0;
    int64_t timeout = 0;
    words >> address >> request.expected_instance_id >> made.id >> made.serial >> count >> timeout;
    made.blocks = cache_.take(count);
    if (made.blocks.empty()) return say("end " + made.id + " none 0");
    request.transfer_id = made.id;
    request.owners = {engine_->peer(address).value()};
    request.group_instance_id = instance_;
    request.fingerprint = "fp" + std::to_string(made.serial);
    request.blocks = {{0, made.blocks}};
    if (draw(2) == 0) request.end_token = static_cast<uint32_t>(count * kChaosTokens);
    request.timeout = milliseconds(timeout);
    made.deadline = Clock::now() + request.timeout;
    made.stopped = stops_.so_far();
    made.reading = parcels_.read(std::move(request)).value();
    readings_.push_back(std::move(made));
  }

  void turn() override {
    for (auto reading = readings_.begin(); reading != readings_.end();) {
      const bool cancels = draw(400) == 0;
      if (cancels) reading->reading.cancel();
      const auto outcome = reading->reading.poll();
      const auto late = std::chrono::duration_cast<milliseconds>(Clock::now() - reading->deadline) -
                        (stops_.so_far() - reading->stopped);
      if (!outcome) {
        if (late > milliseconds(10'000)) return say("bad " + reading->id + " has no outcome"), ::_exit(1);
        ++reading;
        continue;
      }
      // Poison that came by an accepted read is what this test looks for.
      if (outcome->state == ReadState::accepted && !cache_.holds(reading->blocks, reading->serial))
        say("bad " + reading->id + " was accepted and holds something else, by " + outcome->fabric);
      say("end " + reading->id + " " + std::string(to_string(outcome->state)) + " " +
          std::to_string(std::max<int64_t>(0, late.count())));
      cache_.give_back(reading->blocks);
      reading = readings_.erase(reading);
    }
  }

  Stops stops_;
  std::deque<Reading> readings_;
};

int run(int argc, char** argv) {
  if (argc != 6) return 2;
  const std::string role = argv[1];
  EngineConfig config;
  config.engine_id = argv[2];
  config.listen = argv[3];
  config.heartbeat = milliseconds(200);
  config.parcels.reader_grace = milliseconds(800);
  config.fabrics.clear();
  std::istringstream names(argv[4]);
  for (std::string fabric; std::getline(names, fabric, ',');) config.fabrics.push_back(fabric);
  auto engine = Engine::create(config);
  if (!engine) return say("error " + engine.error().to_string()), 1;
  const uint64_t seed = std::stoull(argv[5]);
  std::unique_ptr<Actor> actor;
  if (role == "owner")
    actor = std::make_unique<Owner>(std::move(*engine), argv[2], 512, seed);
  else
    actor = std::make_unique<Reader>(std::move(*engine), argv[2], 1024, seed);
  actor->run();
  return 0;
}

}  // namespace
}  // namespace kvferry::test

int main(int argc, char** argv) {
  return kvferry::test::run(argc, argv);
}
