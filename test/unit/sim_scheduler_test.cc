#include <gtest/gtest.h>

#include <algorithm>

#include "sim/scheduler.h"

namespace kvferry::sim {
namespace {

constexpr TimePoint kNow{std::chrono::hours(1)};

SequenceSpec spec(size_t prompt, size_t answer, KvRole role = KvRole::none, Token fill = 'a') {
  return {.prompt = std::vector<Token>(prompt, fill), .max_new_tokens = answer, .role = role};
}

SchedulerConfig config(size_t blocks, size_t max_sequences, size_t max_batched_tokens) {
  return {.blocks = blocks,
          .block_size = 4,
          .max_model_len = 256,
          .max_sequences = max_sequences,
          .max_batched_tokens = max_batched_tokens,
          .max_waiting = 8};
}

// Plans, runs and appends a token wherever one follows.
Plan step(Scheduler& scheduler) {
  const Plan plan = scheduler.plan(kNow);
  scheduler.ran(plan);
  for (const PlannedChunk& chunk : plan.chunks) {
    if (!chunk.samples) continue;
    const Sequence& sequence = *scheduler.find(chunk.id);
    if (sequence.tokens.size() + 1 == sequence.spec.prompt.size() + sequence.spec.max_new_tokens) {
      scheduler.append(chunk.id, 'z');
      scheduler.end(chunk.id);
    } else {
      scheduler.append(chunk.id, 'z');
    }
  }
  return plan;
}

TEST(SimScheduler, TheStateTableIsTheOneInTheComment) {
  using enum SequenceState;
  using Event = SequenceEvent;
  const std::vector<std::tuple<SequenceState, Event, SequenceState>> allowed = {
      {waiting, Event::admit, running},  {waiting, Event::load, loading}, {waiting, Event::end, ended},
      {loading, Event::loaded, running}, {loading, Event::end, draining}, {loading, Event::quiet, ended},
      {running, Event::hold, held},      {running, Event::end, ended},    {held, Event::end, ended},
      {draining, Event::quiet, ended}};
  size_t found = 0;
  for (const auto from : {waiting, loading, running, held, draining, ended}) {
    for (const auto event : {Event::admit, Event::load, Event::loaded, Event::hold, Event::end, Event::quiet}) {
      const auto to = transition(from, event);
      if (!to) continue;
      ++found;
      EXPECT_NE(std::ranges::find(allowed, std::tuple(from, event, *to)), allowed.end());
    }
  }
  EXPECT_EQ(found, allowed.size());
}

TEST(SimScheduler, LongPromptsRunInChunksAndDoNotStopThoseThatDecode) {
  Scheduler scheduler(config(64, 4, 10));
  const SequenceId first = *scheduler.submit(spec(6, 8));
  step(scheduler);
  const SequenceId second = *scheduler.submit(spec(30, 8, KvRole::none, 'b'));
  size_t chunks = 0;
  while (scheduler.find(second)->tokens.size() == 30) {
    const Plan plan = step(scheduler);
    ASSERT_EQ(plan.chunks.size(), 2u);
    EXPECT_EQ(plan.chunks[0].id, first);
    EXPECT_EQ(plan.chunks[0].count, 1u);
    EXPECT_LE(plan.chunks[1].count, 9u);
    ++chunks;
  }
  EXPECT_EQ(chunks, 4u);  // 9 + 9 + 9 + 3
}

TEST(SimScheduler, AdmitsInOrderAsBlocksAndPlacesAllow) {
  Scheduler scheduler(config(6, 2, 64));
  const SequenceId a = *scheduler.submit(spec(8, 4, KvRole::none, 'a'));   // 3 blocks
  const SequenceId b = *scheduler.submit(spec(16, 4, KvRole::none, 'b'));  // 5: does not fit beside a
  const SequenceId c = *scheduler.submit(spec(4, 1, KvRole::none, 'c'));   // 2: would, but b was first
  step(scheduler);
  EXPECT_EQ(scheduler.find(a)->state, SequenceState::running);
  EXPECT_EQ(scheduler.find(b)->state, SequenceState::waiting);
  EXPECT_EQ(scheduler.find(c)->state, SequenceState::waiting);
  scheduler.end(a);
  step(scheduler);
  EXPECT_EQ(scheduler.find(b)->state, SequenceState::running);
  EXPECT_EQ(scheduler.find(c)->state, SequenceState::waiting);
}

TEST(SimScheduler, EverybodyEndsWhateverTheLoad) {
  Scheduler scheduler(config(16, 3, 8));
  std::vector<SequenceId> ids;
  for (size_t i = 0; i < 8; ++i) ids.push_back(*scheduler.submit(spec(5 + 3 * i, 3 + i, KvRole::none, 'a')));
  size_t steps = 0;
  while (!step(scheduler).chunks.empty()) ASSERT_LT(++steps, 500u);
  for (const SequenceId id : ids) EXPECT_EQ(scheduler.find(id), nullptr);
  EXPECT_EQ(scheduler.stats().blocks.used, 0u);
  EXPECT_GT(scheduler.stats().prompt_tokens_cached, 0u);
}

TEST(SimScheduler, HeldBlocksStayPinnedUntilTheyAreReleased) {
  Scheduler scheduler(config(4, 4, 64));
  const SequenceId id = *scheduler.submit(spec(11, 1, KvRole::produce));
  const Plan plan = scheduler.plan(kNow);
  scheduler.ran(plan);
  scheduler.append(id, 'z');
  scheduler.end(id, Scheduler::Blocks::keep);
  EXPECT_EQ(scheduler.stats().held, 1u);
  EXPECT_EQ(scheduler.stats().held_blocks, 3u);
  ASSERT_TRUE(scheduler.submit(spec(8, 1, KvRole::none, 'b')).ok());
  EXPECT_TRUE(scheduler.plan(kNow).chunks.empty());  // needs 3 blocks, 1 is left
  scheduler.release(id);
  EXPECT_FALSE(scheduler.plan(kNow).chunks.empty());
}

TEST(SimScheduler, ALoadedPromptRunsItsLastTokenOnly) {
  Scheduler scheduler(config(16, 4, 64));
  const SequenceId id = *scheduler.submit(spec(20, 2, KvRole::consume));
  const Plan plan = scheduler.plan(kNow);
  EXPECT_EQ(plan.load, std::vector<SequenceId>{id});
  EXPECT_TRUE(plan.chunks.empty());
  scheduler.ran(plan);
  EXPECT_TRUE(scheduler.plan(kNow).chunks.empty());
  scheduler.loaded(id);
  const Plan next = scheduler.plan(kNow);
  ASSERT_EQ(next.chunks.size(), 1u);
  EXPECT_EQ(next.chunks[0].first, 19u);
  EXPECT_EQ(next.chunks[0].count, 1u);
  EXPECT_TRUE(next.chunks[0].samples);
}

TEST(SimScheduler, BlocksOfAFailedOrAbortedLoadAreNeverRememberedAsAPrefix) {
  Scheduler scheduler(config(16, 4, 64));
  const SequenceId failed = *scheduler.submit(spec(20, 2, KvRole::consume));
  const SequenceId aborted = *scheduler.submit(spec(20, 2, KvRole::consume));
  scheduler.ran(scheduler.plan(kNow));
  scheduler.end(aborted);
  EXPECT_EQ(scheduler.stats().draining, 1u);
  EXPECT_EQ(scheduler.stats().blocks.used, 12u);
  scheduler.quiet(failed);
  scheduler.quiet(aborted);
  EXPECT_EQ(scheduler.stats().blocks.free, 16u);
  const SequenceId next = *scheduler.submit(spec(20, 2));
  scheduler.ran(scheduler.plan(kNow));
  EXPECT_EQ(scheduler.find(next)->cached, 0u);
}

TEST(SimScheduler, OnlyComputedBlocksAreFoundByALaterPrompt) {
  Scheduler scheduler(config(32, 4, 10));
  scheduler.submit(spec(30, 2)).value();
  step(scheduler);  // 10 of 30 tokens: two whole blocks
  const SequenceId twin = *scheduler.submit(spec(30, 2));
  scheduler.plan(kNow);
  EXPECT_EQ(scheduler.find(twin)->cached, 8u);
}

TEST(SimScheduler, RefusesWhatCanNeverRunAndBoundsWhatWaits) {
  Scheduler scheduler(config(8, 1, 64));
  EXPECT_EQ(scheduler.submit(spec(0, 1)).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(scheduler.submit(spec(5, 0)).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(scheduler.submit(spec(30, 10)).error().code, ErrorCode::invalid_argument);  // 10 of 8 blocks
  EXPECT_EQ(scheduler.submit(spec(10, SIZE_MAX)).error().code, ErrorCode::invalid_argument);
  for (size_t i = 0; i < 8; ++i) ASSERT_TRUE(scheduler.submit(spec(4, 1)).ok());
  EXPECT_EQ(scheduler.submit(spec(4, 1)).error().code, ErrorCode::resource_exhausted);
  EXPECT_FALSE(config(8, 9, 8).validate().ok());
}

TEST(SimScheduler, TellsWhoIsOverTheDeadlineAndPlansNothingForThem) {
  Scheduler scheduler(config(16, 4, 64));
  SequenceSpec late = spec(5, 5);
  late.deadline = kNow + std::chrono::seconds(1);
  const SequenceId id = *scheduler.submit(late);
  EXPECT_EQ(scheduler.next_deadline(), late.deadline);
  scheduler.ran(scheduler.plan(kNow));
  scheduler.append(id, 'z');
  const Plan plan = scheduler.plan(late.deadline);
  EXPECT_EQ(plan.expired, std::vector<SequenceId>{id});
  EXPECT_TRUE(plan.chunks.empty());
  scheduler.end(id);
  EXPECT_EQ(scheduler.next_deadline(), kNever);
}

}  // namespace
}  // namespace kvferry::sim
