#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <numeric>

#include "engine/parcel/digest.h"
#include "engine/parcel/selection.h"
#include "engine/run/transfer_task.h"
#include "engine/session/messages.h"
#include "test/support/parcel_node.h"
#include "test/support/sanitized.h"

// What an owner answers to single frames, whoever sends them, and what its tables may cost.

namespace kvferry::test {
namespace {

using namespace std::chrono_literals;  // NOLINT(google-build-using-namespace)
using ::testing::HasSubstr;

// A reader that says what the test tells it to say.
class FrameReader {
 public:
  FrameReader(ParcelScene& scene, simulator::HostIndex host, const std::string& name, ParcelNode& owner)
      : scene_(scene), node_(scene, host, NodeOptions{name, 1, 0, 64, 2, {}}), peer_(node_.peer(owner)) {
    Peer::ParcelListener listener;
    listener.answer = [this](const proto::Frame& frame) { answers_.push_back(frame); };
    node_.core().peer(peer_).set_parcel_listener(std::move(listener));
    bool connected = false;
    node_.core().connect(peer_, [&connected](const Status& status) { connected = status.ok(); });
    KVF_CHECK(scene.run_until(5s, [&] { return connected; }));
  }

  static proto::Claim claim(uint64_t number, const std::string& id) {
    proto::Claim out;
    out.set_number(number);
    out.set_transfer_id(id);
    out.set_fingerprint("prompt");
    out.set_remaining_ms(60'000);
    out.mutable_group()->set_instance_id("decoder");
    out.mutable_group()->set_tp_size(1);
    out.mutable_group()->set_pp_size(1);
    return out;
  }
  std::optional<proto::Ticket> ask(const proto::Claim& claim) {
    proto::Frame frame;
    *frame.mutable_claim() = claim;
    const auto answer = exchange(frame);
    return answer && answer->has_ticket() ? std::optional(answer->ticket()) : std::nullopt;
  }
  std::optional<proto::Verdict> settle(uint64_t number, uint64_t generation, bool more = false) {
    proto::Frame frame;
    frame.mutable_settle()->set_number(number);
    frame.mutable_settle()->set_generation(generation);
    frame.mutable_settle()->set_more(more);
    const auto answer = exchange(frame);
    return answer && answer->has_verdict() ? std::optional(answer->verdict()) : std::nullopt;
  }
  void send(const proto::Frame& frame) { node_.core().peer(peer_).session()->send_parcel(frame); }
  std::optional<proto::Frame> exchange(const proto::Frame& frame, Duration patience = 2s) {
    answers_.clear();
    send(frame);
    if (!scene_.run_until(patience, [&] { return !answers_.empty(); })) return std::nullopt;
    return answers_.front();
  }
  // The error of a fetch, or the trailer's.
  Status fetch(const proto::Claim& claim, size_t room);
  void begin_fetch(const proto::Claim& claim, size_t room, std::function<void(Status)> ended);
  ParcelNode& node() { return node_; }
  EngineCore::PeerIndex peer() const { return peer_; }

 private:
  ParcelScene& scene_;
  ParcelNode node_;
  const EngineCore::PeerIndex peer_;
  std::vector<proto::Frame> answers_;
};

void FrameReader::begin_fetch(const proto::Claim& claim, size_t room, std::function<void(Status)> ended) {
  struct Sink final : tcp::FetchSink {
    void on_head(ByteSpan) override {}
    Result<std::vector<iovec>> place(uint64_t bytes) override {
      if (at + bytes > memory.size()) return Error{ErrorCode::protocol, "too much"};
      at += bytes;
      return std::vector<iovec>{{memory.data() + at - bytes, bytes}};
    }
    bool on_filled() override { return true; }
    void on_end(Result<std::string> trailer) override {
      proto::Verdict verdict;
      if (!trailer)
        ended(trailer.error());
      else if (!verdict.ParseFromString(*trailer))
        ended(Error{ErrorCode::protocol, "no verdict"});
      else
        ended(verdict.code() == 0 ? Status() : Error{code_from_wire(verdict.code()), verdict.message()});
    }
    std::vector<std::byte> memory;
    size_t at = 0;
    std::function<void(Status)> ended;
  };
  const auto sink = std::make_shared<Sink>();
  sink->memory.resize(room);
  sink->ended = std::move(ended);
  node_.core().peer(peer_).fetch_path()->start(claim.SerializeAsString(), sink);
}

Status FrameReader::fetch(const proto::Claim& claim, size_t room) {
  std::optional<Status> end;
  begin_fetch(claim, room, [&end](Status status) { end = std::move(status); });
  if (!scene_.run_until(40s, [&] { return end.has_value(); })) return Error{ErrorCode::internal, "no end"};
  return *end;
}

class ParcelFrames : public ::testing::Test {
 protected:
  explicit ParcelFrames(ParcelLimits limits = {}) : owner_(scene_, 0, NodeOptions{"owner", 1, 0, 64, 2, limits}) {}

  Status publish(const std::string& id, std::vector<uint32_t> blocks, Duration lease = 60s, bool digest = false) {
    ParcelSpec spec;
    spec.digest = digest;
    spec.transfer_id = id;
    spec.tokens = blocks.size() * ParcelNode::kBlockTokens;
    spec.blocks = {{0, std::move(blocks)}};
    spec.fingerprint = "prompt";
    spec.lease = lease;
    return owner_.owner().publish(std::move(spec));
  }
  // How often the limit has refused.
  int64_t counted(const std::string& limit) {
    const std::string name = "kvferry_parcel_refusals_total{limit=\"" + limit + "\"} ";
    const std::string text = owner_.metrics();
    const size_t at = text.find(name);
    return at == std::string::npos ? -1 : std::stoll(text.substr(at + name.size()));
  }
  static Selection tokens(uint32_t first, uint32_t end) {
    SelectionPart part;
    part.head_count = 2;
    part.first_token = first;
    part.end_token = end;
    part.chunk_tokens = ParcelNode::kBlockTokens;
    part.layers = {{0, 2, 1}};
    return {{part}};
  }

  ParcelScene scene_;
  ParcelNode owner_;
  FrameReader reader_{scene_, 1, "reader", owner_};
};

TEST_F(ParcelFrames, SettleIsIdempotentAndItsAnswerIsKept) {
  ASSERT_TRUE(publish("t", {5}).ok());
  const auto ticket = reader_.ask(FrameReader::claim(1, "t"));
  ASSERT_TRUE(ticket);
  for (int i = 0; i < 3; ++i) {
    const auto verdict = reader_.settle(1, ticket->generation());
    ASSERT_TRUE(verdict);
    EXPECT_EQ(verdict->code(), 0u) << "asked for the " << i << ". time";
  }
  EXPECT_EQ(owner_.released().size(), 1u);
  scene_.run_for(ParcelLimits().verdict_life + 1s);
  ASSERT_TRUE(publish("u", {6}).ok());  // something that looks at the answers kept
  const auto other = reader_.ask(FrameReader::claim(2, "u"));
  ASSERT_TRUE(other && reader_.settle(2, other->generation()));
  const auto late = reader_.settle(1, ticket->generation());
  ASSERT_TRUE(late);
  EXPECT_EQ(code_from_wire(late->code()), ErrorCode::gone) << "too old to be known";
}

TEST_F(ParcelFrames, AClaimAskedAgainUnderItsNumberIsTheSameClaim) {
  ASSERT_TRUE(publish("t", {5}).ok());
  const auto first = reader_.ask(FrameReader::claim(1, "t"));
  const auto again = reader_.ask(FrameReader::claim(1, "t"));
  ASSERT_TRUE(first && again);
  EXPECT_EQ(first->generation(), again->generation());
  EXPECT_EQ(owner_.owner().status("t")->readers, 1u);
  ASSERT_TRUE(reader_.settle(1, first->generation()));
  const auto ended = reader_.ask(FrameReader::claim(1, "t"));
  ASSERT_TRUE(ended);
  EXPECT_EQ(code_from_wire(ended->code()), ErrorCode::gone);
}

TEST_F(ParcelFrames, ASettleOfAnotherGenerationIsStale) {
  ASSERT_TRUE(publish("t", {5}).ok());
  const auto ticket = reader_.ask(FrameReader::claim(1, "t"));
  const auto verdict = reader_.settle(1, ticket->generation() + 1);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(code_from_wire(verdict->code()), ErrorCode::stale);
}

TEST_F(ParcelFrames, ADigestComputedAheadIsComparedWhenTheReaderTellsItsOwn) {
  const auto check = [](uint64_t generation, const Selection& selection) {
    proto::Frame frame;
    frame.mutable_check()->set_number(1);
    frame.mutable_check()->set_generation(generation);
    frame.mutable_check()->set_selection(encode(selection));
    return frame;
  };
  const auto settle = [](uint64_t generation, const Selection& selection, uint64_t digest) {
    proto::Frame frame;
    frame.mutable_settle()->set_number(1);
    frame.mutable_settle()->set_generation(generation);
    frame.mutable_settle()->set_selection(encode(selection));
    frame.mutable_settle()->set_digest(digest);
    return frame;
  };
  const Selection all = tokens(0, ParcelNode::kBlockTokens);
  const Selection less = tokens(0, ParcelNode::kBlockTokens - 1);
  owner_.fill(std::byte{7});
  const auto digest_of = [layout = owner_.layout()](const Selection& selection) {
    const std::vector<BlockList> blocks = {{0, {5}}};
    std::vector<std::byte> bytes(owner_spans(selection, CacheSide{&layout, blocks})->bytes(), std::byte{7});
    const iovec piece{bytes.data(), bytes.size()};
    Digest digest;
    digest.add({&piece, 1});
    return digest.value();
  };
  struct Trial {
    bool right_generation;
    const Selection& checked;
    uint64_t digest;  // told with `all`
    bool valid;
  };
  int number = 0;
  for (const Trial& trial : {Trial{true, all, digest_of(all), true}, Trial{true, all, digest_of(all) + 1, false},
                             Trial{true, less, digest_of(all), true}, Trial{true, less, digest_of(less), false},
                             Trial{false, all, digest_of(all), true}}) {
    FrameReader reader(scene_, 2, "reader" + std::to_string(number), owner_);
    const std::string id = "t" + std::to_string(number++);
    ASSERT_TRUE(publish(id, {5}, 60s, true).ok());
    const auto ticket = reader.ask(FrameReader::claim(1, id));
    ASSERT_TRUE(ticket);
    reader.send(check(trial.right_generation ? ticket->generation() : ticket->generation() + 1, trial.checked));
    const auto answer = reader.exchange(settle(ticket->generation(), all, trial.digest));
    ASSERT_TRUE(answer && answer->has_verdict()) << number;
    EXPECT_EQ(answer->verdict().code() == 0, trial.valid) << number;
  }
}

// A claim that comes with its fetch takes another way than the word that it is not wanted any more.
TEST_F(ParcelFrames, AClaimThatIsGivenUpBeforeItArrivesIsRefused) {
  ASSERT_TRUE(publish("t", {5}).ok());
  proto::Frame given_up;
  given_up.mutable_settle()->set_number(1);
  given_up.mutable_settle()->set_code(static_cast<uint32_t>(ErrorCode::cancelled));
  given_up.mutable_settle()->set_one_way(true);
  reader_.send(given_up);
  scene_.run_for(100ms);
  const auto ticket = reader_.ask(FrameReader::claim(1, "t"));
  ASSERT_TRUE(ticket);
  EXPECT_EQ(code_from_wire(ticket->code()), ErrorCode::gone);
  EXPECT_EQ(owner_.owner().status("t")->readers, 0u);
}

TEST_F(ParcelFrames, ASettleAfterTheParcelsEndIsStale) {
  ASSERT_TRUE(publish("t", {5}).ok());
  const auto ticket = reader_.ask(FrameReader::claim(1, "t"));
  owner_.owner().release("t", true);
  const auto verdict = reader_.settle(1, ticket->generation());
  ASSERT_TRUE(verdict);
  EXPECT_EQ(code_from_wire(verdict->code()), ErrorCode::stale);
}

// ---- private regions

TEST_F(ParcelFrames, PrivateRegionsAreReadableByATicketsSpansAlone) {
  ASSERT_TRUE(publish("t", {5, 6}, 10s).ok());
  // Not by a transfer, ticket or no ticket.
  ASSERT_TRUE(reader_.ask(FrameReader::claim(1, "t")));
  auto task = std::make_shared<TransferTask>();
  task->deadline = reader_.node().now() + 10s;
  task->job = std::make_shared<Job>();
  auto pin = reader_.node().process->registry->pin_local(reader_.node().memory.data(), 64);
  ASSERT_TRUE(pin.ok());
  task->job->local_ops = (*pin)->ops;
  task->job->pairs = {{reader_.node().memory.data(), owner_.region(), 0, 64}};
  reader_.node().core().submit(reader_.peer(), task);
  ASSERT_TRUE(scene_.run_until(5s, [&] { return task->completion->done(); }));
  EXPECT_EQ(task->completion->outcome().status.error().code, ErrorCode::permission_denied);
  // Not by a fetch of more than the parcel covers.
  proto::Claim fetch = FrameReader::claim(2, "t");
  fetch.set_selection(encode(tokens(0, 48)));
  const Status beyond = reader_.fetch(fetch, 1 << 20);
  ASSERT_FALSE(beyond.ok());
  EXPECT_EQ(beyond.error().code, ErrorCode::invalid_argument) << beyond.error().to_string();
  // The failed rank ends the parcel: published again under another id.
  ASSERT_TRUE(publish("u", {5, 6}, 10s).ok());
  fetch = FrameReader::claim(3, "u");
  fetch.set_selection(encode(tokens(0, 32)));
  EXPECT_TRUE(reader_.fetch(fetch, 1 << 20).ok());
  // Not when the lease is over.
  scene_.run_for(61s);
  fetch.set_number(4);
  const Status late = reader_.fetch(fetch, 1 << 20);
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::gone) << late.error().to_string();
}

TEST_F(ParcelFrames, AnotherSessionCannotUseAClaimsNumber) {
  ASSERT_TRUE(publish("t", {5}).ok());
  const auto ticket = reader_.ask(FrameReader::claim(1, "t"));
  FrameReader thief(scene_, 2, "thief", owner_);
  const auto verdict = thief.settle(1, ticket->generation());
  ASSERT_TRUE(verdict);
  EXPECT_EQ(code_from_wire(verdict->code()), ErrorCode::gone);
  EXPECT_EQ(owner_.owner().status("t")->readers, 1u);
  proto::Claim claim = FrameReader::claim(1, "t");
  claim.mutable_group()->set_instance_id("thief");
  const auto refused = thief.ask(claim);
  ASSERT_TRUE(refused);
  EXPECT_EQ(code_from_wire(refused->code()), ErrorCode::conflict);
}

// ---- limits

ParcelLimits small_limits() {
  ParcelLimits limits;
  limits.parcels = 4;
  limits.claims_per_parcel = 2;
  limits.waiting_per_reader = 2;
  limits.waiting_claims = 3;
  limits.spans_per_claim = 4;
  limits.kept_verdicts = 1;
  limits.tombstones = 2;
  return limits;
}

class ParcelLimitsTest : public ParcelFrames {
 protected:
  ParcelLimitsTest() : ParcelFrames(small_limits()) {}
};

TEST_F(ParcelLimitsTest, AFullTableRefusesParcelsWithItsCauseAndAMetric) {
  for (const char* id : {"a", "b", "c", "d"}) ASSERT_TRUE(publish(id, {5}).ok());
  const Status full = publish("e", {5});
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::resource_exhausted);
  EXPECT_THAT(full.error().message, HasSubstr("parcels (4)"));
  EXPECT_EQ(counted("parcels"), 1);
  owner_.owner().release("a", true);
  EXPECT_FALSE(publish("e", {5}).ok()) << "its end has not been taken";
  EXPECT_EQ(owner_.released().size(), 1u);
  EXPECT_TRUE(publish("e", {5}).ok());
}

TEST_F(ParcelLimitsTest, ClaimsOfOneParcelAreBounded) {
  ASSERT_TRUE(publish("t", {5}).ok());
  for (const uint64_t number : {1u, 2u}) {
    const auto ticket = reader_.ask(FrameReader::claim(number, "t"));
    ASSERT_TRUE(ticket);
    EXPECT_EQ(ticket->code(), 0u);
  }
  const auto refused = reader_.ask(FrameReader::claim(3, "t"));
  ASSERT_TRUE(refused);
  EXPECT_EQ(code_from_wire(refused->code()), ErrorCode::resource_exhausted);
  EXPECT_THAT(refused->message(), HasSubstr("claims_per_parcel (2)"));
  EXPECT_EQ(counted("claims_per_parcel"), 1);
}

TEST_F(ParcelLimitsTest, WaitingClaimsOfOneReaderAreBoundedAndOthersStillWait) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  for (const uint64_t number : {1u, 2u}) {
    proto::Frame frame;
    *frame.mutable_claim() = FrameReader::claim(number, "t");
    reader_.send(frame);
  }
  const auto refused = reader_.ask(FrameReader::claim(3, "t"));
  ASSERT_TRUE(refused);
  EXPECT_EQ(code_from_wire(refused->code()), ErrorCode::resource_exhausted);
  EXPECT_THAT(refused->message(), HasSubstr("waiting_per_reader (2)"));
  EXPECT_EQ(counted("waiting_per_reader"), 1);
  FrameReader other(scene_, 2, "other", owner_);
  proto::Frame frame;
  *frame.mutable_claim() = FrameReader::claim(1, "t");
  EXPECT_EQ(other.exchange(frame, 1s), std::nullopt) << "it waits";
}

TEST_F(ParcelLimitsTest, WaitingClaimsOfAllReadersAreBounded) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  FrameReader other(scene_, 2, "other", owner_);
  std::string id = "t";
  const auto wait = [&id](FrameReader& reader, uint64_t number) {
    proto::Frame frame;
    *frame.mutable_claim() = FrameReader::claim(number, id);
    return reader.exchange(frame, 1s);
  };
  EXPECT_EQ(wait(reader_, 1), std::nullopt);
  EXPECT_EQ(wait(reader_, 2), std::nullopt);
  EXPECT_EQ(wait(other, 1), std::nullopt);
  const auto refused = wait(other, 2);
  ASSERT_TRUE(refused);
  EXPECT_THAT(refused->ticket().message(), HasSubstr("waiting_claims (3)"));
  EXPECT_EQ(counted("waiting_claims"), 1);
  owner_.owner().withdraw(id);
  scene_.run_for(1s);  // they are told
  ASSERT_TRUE(owner_.owner().announce(id = "u", 60s).ok());
  for (const uint64_t number : {3u, 4u}) EXPECT_EQ(wait(reader_, number), std::nullopt) << "they had given it back";
  EXPECT_EQ(wait(other, 3), std::nullopt);
}

// Each makes a table of its spans, which costs the owner more than the asking.
class ParcelFetchLimitsTest : public ParcelFrames {
 protected:
  ParcelFetchLimitsTest() : ParcelFrames(ParcelLimits{.fetches_per_claim = 2}) {}
};

TEST_F(ParcelFetchLimitsTest, FetchesOfOneClaimAreBounded) {
  ASSERT_TRUE(publish("t", {5}).ok());
  proto::Claim fetch = FrameReader::claim(1, "t");
  fetch.set_selection(encode(tokens(0, 16)));
  for (int i = 0; i < 2; ++i) {
    const Status read = reader_.fetch(fetch, 1 << 20);
    EXPECT_TRUE(read.ok()) << read.error().to_string();
  }
  const Status refused = reader_.fetch(fetch, 1 << 20);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().to_string(), HasSubstr("fetches_per_claim (2)"));
  EXPECT_EQ(counted("fetches_per_claim"), 1);
}

TEST_F(ParcelFrames, ASelectionLongerThanAnyIsRefusedAtOnce) {
  ASSERT_TRUE(publish("t", {5}).ok());
  proto::Claim fetch = FrameReader::claim(1, "t");
  fetch.set_selection(std::string(kMaxSelectionBytes + 1, 'x'));
  const Status refused = reader_.fetch(fetch, 1 << 20);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument) << refused.error().to_string();
}

// What a claim carries besides, for instance in fields that nobody knows, is not kept while it waits.
TEST_F(ParcelFrames, AWaitingClaimKeepsNothingThatItIsNotAskedFor) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  constexpr int kClaims = 100;
  const auto used = [] { return ::mallinfo2().uordblks + ::mallinfo2().hblkhd; };
  const size_t before = used();
  for (int i = 0; i < kClaims; ++i) {
    proto::Frame frame;
    *frame.mutable_claim() = FrameReader::claim(static_cast<uint64_t>(i) + 1, "t");
    frame.mutable_claim()->set_selection(std::string(500'000, 'x'));
    EXPECT_EQ(reader_.exchange(frame, 10ms), std::nullopt) << "it waits";
  }
  if (!kSanitized) {
    EXPECT_LT(used() - before, size_t{10} << 20);
  }
}

// A reader that asks anew has given up on what came before it.
TEST_F(ParcelFrames, AFetchTakesThePlaceOfTheOneBefore) {
  std::vector<uint32_t> blocks(60);
  std::iota(blocks.begin(), blocks.end(), 1);
  ASSERT_TRUE(publish("t", blocks).ok());
  proto::Claim fetch = FrameReader::claim(1, "t");
  fetch.set_selection(encode(tokens(0, 60 * 16)));
  std::vector<Status> ends;
  for (int i = 0; i < 3; ++i) reader_.begin_fetch(fetch, 1 << 20, [&](Status end) { ends.push_back(std::move(end)); });
  ASSERT_TRUE(scene_.run_until(40s, [&] { return ends.size() == 3; }));
  const auto whole = std::count_if(ends.begin(), ends.end(), [](const Status& end) { return end.ok(); });
  EXPECT_EQ(whole, 1) << "of a reader's fetches of one claim only the last counts";
  for (const Status& end : ends) {
    if (!end.ok()) {
      EXPECT_EQ(end.error().code, ErrorCode::stale) << end.error().to_string();
    }
  }
}

TEST_F(ParcelLimitsTest, SpansOfOneClaimAreBounded) {
  ASSERT_TRUE(publish("t", {5, 9, 13}).ok());
  proto::Claim fetch = FrameReader::claim(1, "t");
  fetch.set_selection(encode(tokens(0, 48)));
  const Status refused = reader_.fetch(fetch, 1 << 20);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::resource_exhausted) << refused.error().to_string();
  EXPECT_EQ(counted("spans_per_claim"), 1);
}

TEST_F(ParcelLimitsTest, AnAnswerThatWasEvictedMeansGone) {
  uint64_t generation = 0;
  for (const uint64_t number : {1u, 2u}) {
    const std::string id = "t" + std::to_string(number);
    ASSERT_TRUE(publish(id, {5}).ok());
    const auto ticket = reader_.ask(FrameReader::claim(number, id));
    if (number == 1) generation = ticket->generation();
    EXPECT_EQ(reader_.settle(number, ticket->generation())->code(), 0u);
  }
  EXPECT_EQ(code_from_wire(reader_.settle(1, generation)->code()), ErrorCode::gone);
  EXPECT_EQ(counted("kept_verdicts"), 1);
}

TEST_F(ParcelLimitsTest, TombstonesAreBoundedAndTheOldestGoesFirst) {
  for (const char* id : {"a", "b", "c"}) owner_.owner().release(id, false);
  EXPECT_EQ(counted("tombstones"), 1);
  ASSERT_TRUE(publish("c", {5}).ok());
  EXPECT_EQ(owner_.released().size(), 1u) << "released before it was published";
  ASSERT_TRUE(publish("a", {5}).ok());
  EXPECT_TRUE(owner_.released().empty()) << "forgotten";
}

// ---- 100,000 parcels

// Of this thread's CPU: a busy machine takes the rest.
double milliseconds_of(const std::function<void()>& work) {
  const auto now = [] {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
  };
  const double began = now();
  work();
  return now() - began;
}

std::string uuid_like(size_t index) {
  char text[64];
  std::snprintf(text, sizeof text, "%08zx-1111-4222-8333-%012zx", index, index * 2654435761u);
  return text;
}

TEST_F(ParcelFrames, AHundredThousandParcelsFitInTwoHundredMegabytesAndExpireInTheirOwnTime) {
  constexpr size_t kExpiring = 2000;
  double took[2] = {};
  size_t live = 0;
  const size_t before = ::mallinfo2().uordblks;
  for (const size_t wanted : {size_t{10'000}, size_t{100'000}}) {
    for (; live < wanted; ++live)
      ASSERT_TRUE(publish(uuid_like(live), std::vector<uint32_t>(16, static_cast<uint32_t>(live % 64)), 1h).ok());
    if (wanted == 100'000) {
      const double megabytes = static_cast<double>(::mallinfo2().uordblks - before) / 1e6;
      std::printf("%zu parcels of 16 block ids take %.1f MB\n", live, megabytes);
      if (!kSanitized) {
        EXPECT_GT(megabytes, 10) << "mallinfo does not see it";
      }
      EXPECT_LT(megabytes, 200);
    }
    double& best = took[wanted == 100'000];
    best = 1e9;
    for (int round = 0; round < 5; ++round) {
      const std::string prefix = std::to_string(wanted) + "/" + std::to_string(round) + "/";
      for (size_t i = 0; i < kExpiring; ++i) ASSERT_TRUE(publish(prefix + std::to_string(i), {1}, 1s).ok());
      scene_.run_for(999ms);
      ASSERT_TRUE(owner_.released().empty());
      best = std::min(best, milliseconds_of([&] { scene_.run_for(10ms); }));
      EXPECT_EQ(owner_.released().size(), kExpiring);
    }
    std::printf("%zu of %zu parcels expire in %.2f ms\n", kExpiring, live + kExpiring, best);
  }
  EXPECT_LT(took[1], 6 * took[0] + 1) << "ten times the parcels, the same number that expires";
}

}  // namespace
}  // namespace kvferry::test
