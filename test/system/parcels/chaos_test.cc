#include <gtest/gtest.h>

#include <csignal>
#include <map>
#include <random>
#include <sstream>

#include "common/config.h"
#include "test/support/free_port.h"
#include "test/support/process.h"
#include "test/support/sanitized.h"

// Owners that poison blocks the instant they have them back, and readers that are paused, killed and started again: no
// accepted read holds anything but its parcel, every claim ends by its deadline, and nothing lives on.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Actor {
  std::string role, name, listen = free_address(), fabrics;  // all its lives are there
  std::optional<Process> process;
  std::string address, instance;
  size_t expected = 0;  // ends that it owes
  TimePoint stopped_at{};
  TimePoint stopped_until{};  // by SIGSTOP
  size_t descriptors = 0;     // before the storm
};

struct Facts {
  size_t free_blocks = 0, blocks = 0;
  int64_t parcels = 0, claims = 0, sessions = 0;
  size_t descriptors = 0, unfinished = 0;
};

class ParcelChaos : public ::testing::Test {
 protected:
  static void add(std::vector<Actor>& side, const char* role, const char* name, const char* fabrics) {
    Actor& actor = side.emplace_back();
    actor.role = role;
    actor.name = name;
    actor.fabrics = fabrics;
  }

  void start(Actor& actor) {
    ProcessOptions options;
    options.arguments = {actor.role, actor.name, actor.listen, actor.fabrics, std::to_string(random_())};
    auto spawned = Process::spawn(KVF_PARCEL_ACTOR, options);
    ASSERT_TRUE(spawned.ok()) << spawned.error().to_string();
    actor.process.emplace(std::move(*spawned));
    const auto line = actor.process->read_line(seconds(60));
    ASSERT_TRUE(line.ok()) << line.error().to_string();
    std::istringstream words(*line);
    std::string ready;
    words >> ready >> actor.address >> actor.instance;
    ASSERT_EQ(ready, "ready") << *line;
    actor.expected = 0;
    actor.stopped_until = {};
  }

  std::optional<Facts> facts_of(Actor& actor) {
    if (!actor.process->write("facts\n").ok()) return std::nullopt;
    while (true) {
      const auto line = actor.process->read_line(seconds(60));
      if (!line.ok()) return std::nullopt;
      if (!line->starts_with("facts ")) {
        on_line(actor, *line);
        continue;
      }
      std::istringstream words(line->substr(6));
      Facts facts;
      words >> facts.free_blocks >> facts.blocks >> facts.parcels >> facts.claims >> facts.sessions >>
          facts.descriptors >> facts.unfinished;
      return facts;
    }
  }

  void on_line(Actor& actor, const std::string& line) {
    std::istringstream words(line);
    std::string verb, id;
    words >> verb >> id;
    if (verb == "parcel") {
      uint64_t serial = 0;
      size_t blocks = 0;
      words >> serial >> blocks;
      ++published_;
      // Mostly one reader, sometimes two that are of different groups, sometimes none.
      const size_t times = random_() % 10 == 0 ? 2 : random_() % 20 == 0 ? 0 : 1;
      for (size_t i = 0; i < times; ++i) {
        Actor& reader = readers_[random_() % readers_.size()];
        const bool wrong = random_() % 50 == 0;  // two ids that were mixed up
        std::ostringstream out;
        out << "read " << actor.address << " " << actor.instance << " " << id << " " << serial + (wrong ? 1 : 0) << " "
            << blocks << " " << 100 + random_() % 3000 << "\n";
        if (reader.process->write(out.str()).ok()) ++reader.expected;
      }
    } else if (verb == "end") {
      std::string state;
      int64_t late = 0;
      words >> state >> late;
      if (actor.expected > 0) --actor.expected;
      ++ends_[state];
      latest_ = std::max(latest_, late);
    } else {
      ADD_FAILURE() << actor.name << " says: " << line;
    }
  }

  void drain(Actor& actor, Duration patience) {
    for (auto line = actor.process->read_line(patience); line.ok(); line = actor.process->read_line(Duration(0)))
      on_line(actor, *line);
  }

  void disturb(TimePoint now) {
    Actor& reader = readers_[random_() % readers_.size()];
    if (reader.stopped_until != TimePoint()) return;
    switch (random_() % 8) {
      case 0:
      case 1:
        ASSERT_TRUE(reader.process->kill().ok());
        ++kills_;
        return start(reader);
      case 2: {
        Actor& owner = owners_[random_() % owners_.size()];
        ASSERT_TRUE(owner.process->kill().ok());
        ++kills_;
        start(owner);
        ASSERT_TRUE(owner.process->write("publish " + std::to_string(wanted_) + "\n").ok());
        return;
      }
      default:
        const Status stopped = reader.process->stop();
        ASSERT_TRUE(stopped.ok()) << reader.name << ": " << stopped.error().to_string();
        ++pauses_;
        reader.stopped_at = now;
        reader.stopped_until = now + milliseconds(20 + random_() % 1500);
    }
  }

  void storm() {
    TimePoint next_fault = clock_.now() + milliseconds(20);
    while (published_ < wanted_ && !HasFailure()) {
      for (Actor& owner : owners_) drain(owner, milliseconds(1));
      const TimePoint now = clock_.now();
      for (Actor& reader : readers_) {
        if (reader.stopped_until != TimePoint() && now >= reader.stopped_until) resume(reader);
        if (reader.stopped_until == TimePoint()) drain(reader, Duration(0));
      }
      if (now < next_fault) continue;
      disturb(now);
      next_fault = now + milliseconds(random_() % 100);
      ASSERT_LT(now, end_) << published_ << " of " << wanted_ << " parcels in time";
    }
  }

  void resume(Actor& reader) {
    ASSERT_TRUE(reader.process->resume().ok());
    reader.stopped_until = {};
    longest_pause_ = std::max(longest_pause_, clock_.now() - reader.stopped_at);
  }

  // Every read has ended and every block is back.
  void check_rest() {
    for (Actor& reader : readers_)
      if (reader.stopped_until != TimePoint()) resume(reader);
    for (Actor& reader : readers_) {
      for (const TimePoint until = clock_.now() + seconds(60); reader.expected > 0 && clock_.now() < until;)
        drain(reader, milliseconds(20));
      EXPECT_EQ(reader.expected, 0u) << reader.name << " owes outcomes";
    }
    for (Actor& owner : owners_) {
      Facts last;
      const TimePoint until = clock_.now() + seconds(60);
      do {
        const auto facts = facts_of(owner);
        ASSERT_TRUE(facts) << owner.name << " has ended";
        last = *facts;
      } while ((last.unfinished > 0 || last.free_blocks < last.blocks || last.claims > 0) && clock_.now() < until);
      EXPECT_EQ(last.free_blocks, last.blocks) << owner.name << ": blocks that never came back";
      EXPECT_EQ(last.parcels, 0) << owner.name;
      EXPECT_EQ(last.claims, 0) << owner.name;
    }
  }

  // Sessions and descriptors end with the readers.
  void check_leaks() {
    for (Actor& reader : readers_) ASSERT_TRUE(reader.process->kill().ok());
    for (Actor& owner : owners_) {
      Facts last;
      const TimePoint until = clock_.now() + seconds(60);
      do {
        const auto facts = facts_of(owner);
        ASSERT_TRUE(facts);
        last = *facts;
      } while ((last.sessions > 0 || last.descriptors > owner.descriptors) && clock_.now() < until);
      EXPECT_EQ(last.sessions, 0) << owner.name;
      EXPECT_LE(last.descriptors, owner.descriptors) << owner.name;
    }
  }

  const SystemClock clock_;
  std::mt19937_64 random_{std::random_device{}()};
  std::vector<Actor> owners_;
  std::vector<Actor> readers_;
  size_t wanted_ = 0;
  size_t published_ = 0;
  size_t kills_ = 0;
  size_t pauses_ = 0;
  int64_t latest_ = 0;
  Duration longest_pause_{0};
  TimePoint end_ = kNever;
  std::map<std::string, size_t> ends_;
};

TEST_F(ParcelChaos, NoAcceptedReadHoldsAnythingButItsParcelAndNothingLivesOn) {
  const auto wanted = Environment::of_process().size("KVFERRY_TEST_PARCELS", 10000);
  ASSERT_TRUE(wanted.ok());
  wanted_ = *wanted;
  end_ = clock_.now() + seconds(30) + milliseconds(wanted_ * 20) * kSlower;
  for (const char* name : {"owner-a", "owner-b"}) add(owners_, "owner", name, "local,tcp");
  const std::pair<const char*, const char*> readers[] = {
      {"reader-a", "local"}, {"reader-b", "tcp"}, {"reader-c", "local,tcp"}, {"reader-d", "tcp"}};
  for (const auto& [name, fabrics] : readers) add(readers_, "reader", name, fabrics);
  for (auto* side : {&owners_, &readers_})
    for (Actor& actor : *side) ASSERT_NO_FATAL_FAILURE(start(actor));
  for (Actor& owner : owners_) {
    const auto facts = facts_of(owner);
    ASSERT_TRUE(facts);
    owner.descriptors = facts->descriptors;
    ASSERT_TRUE(owner.process->write("publish " + std::to_string(wanted_) + "\n").ok());
  }
  storm();
  for (Actor& owner : owners_) {
    ASSERT_TRUE(owner.process->write("stop\n").ok());
    drain(owner, Duration(0));
  }
  if (!HasFailure()) check_rest();
  if (!HasFailure()) check_leaks();
  std::printf("%zu parcels, %zu kills, %zu pauses, latest outcome %lld ms after its deadline;", published_, kills_,
              pauses_, static_cast<long long>(latest_));
  for (const auto& [state, count] : ends_) std::printf(" %s %zu", state.c_str(), count);
  std::printf("\n");
  // A reader that is stopped cannot end anything; one that runs has no excuse but the machine's.
  EXPECT_LT(milliseconds(latest_), longest_pause_ + milliseconds(2000 * kSlower)) << "after its deadline";
  EXPECT_GT(ends_["accepted"], published_ / 5);
  EXPECT_GT(ends_["stale"] + ends_["gone"], 0u);
  EXPECT_GT(ends_["conflict"], 0u);
  EXPECT_GT(kills_, 3u);
  EXPECT_GT(pauses_, 3u);
}

}  // namespace
}  // namespace kvferry::test
