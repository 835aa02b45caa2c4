#include <gtest/gtest.h>

#include "bootstrap/directory.h"

namespace kvferry::bootstrap {
namespace {

using std::chrono::seconds;
using Change = Directory::Change;

constexpr TimePoint kStart{std::chrono::hours(1)};

Registration worker(std::string engine, Rank rank, std::string addr = "tcp://10.0.0.2:41234") {
  Registration out;
  out.engine_id = std::move(engine);
  out.rank = rank;
  out.addr = std::move(addr);
  return out;
}

Registration leased(std::string engine, Rank rank, uint64_t incarnation, Duration age, Duration ttl = seconds(5)) {
  Registration out = worker(std::move(engine), rank);
  out.incarnation = incarnation;
  out.age = age;
  out.ttl = ttl;
  return out;
}

ErrorCode code_of(const Result<Directory::Registered>& added) {
  return added.ok() ? ErrorCode{} : added.error().code;
}

TEST(BootstrapDirectory, AnswersQueriesInVllmsBytes) {
  Directory directory({});
  EXPECT_EQ(directory.query(""), "{}");
  ASSERT_TRUE(directory.add("", worker("e0", {0, 0, 0}), kStart).ok());
  EXPECT_EQ(directory.query(""), R"({"0":{"engine_id":"e0","worker_addr":{"0":{"0":"tcp://10.0.0.2:41234"}}}})");
  ASSERT_TRUE(directory.add("", worker("e0", {0, 1, 1}, "tcp://h:2"), kStart).ok());
  ASSERT_TRUE(directory.add("", worker("e0", {0, 1, 0}, "tcp://h:1"), kStart).ok());
  ASSERT_TRUE(directory.add("", worker("e\"1", {10, 0, 0}, "tcp://[::1]:3"), kStart).ok());
  EXPECT_EQ(directory.query(""), R"({"0":{"engine_id":"e0","worker_addr":{"0":{"0":"tcp://10.0.0.2:41234"},)"
                                 R"("1":{"0":"tcp://h:1","1":"tcp://h:2"}}},)"
                                 R"("10":{"engine_id":"e\"1","worker_addr":{"0":{"0":"tcp://[::1]:3"}}}})");
}

TEST(BootstrapDirectory, TheSameRegistrationAgainRenews) {
  Directory directory({});
  EXPECT_EQ(directory.add("", worker("e", {}), kStart)->change, Change::added);
  EXPECT_EQ(directory.add("", worker("e", {}), kStart)->change, Change::renewed);
  EXPECT_EQ(directory.size(), 1U);
}

TEST(BootstrapDirectory, ANewEngineIdReplacesAllRanksOfItsDataParallelRank) {
  Directory directory({});
  for (uint32_t tp = 0; tp < 4; ++tp) ASSERT_TRUE(directory.add("", worker("old", {0, tp, 0}), kStart).ok());
  ASSERT_TRUE(directory.add("", worker("other", {1, 0, 0}), kStart).ok());
  EXPECT_EQ(directory.add("", worker("new", {0, 0, 0}), kStart)->change, Change::replaced);
  EXPECT_EQ(directory.size(), 2U);
  EXPECT_EQ(directory.workers("").at(0)->engine_id, "new");
  EXPECT_EQ(directory.workers("").at(1)->engine_id, "other");
}

TEST(BootstrapDirectory, AProcessThatStartedEarlierDoesNotComeBack) {
  Directory directory({});
  ASSERT_TRUE(directory.add("", leased("old", {}, 1, seconds(100)), kStart).ok());
  ASSERT_TRUE(directory.add("", leased("new", {}, 2, seconds(1)), kStart).ok());
  EXPECT_EQ(code_of(directory.add("", leased("old", {}, 1, seconds(100)), kStart)), ErrorCode::conflict);
  EXPECT_EQ(directory.renew("", {"old", {}, 1}, kStart).error().code, ErrorCode::conflict);
  EXPECT_EQ(directory.workers("").at(0)->engine_id, "new");
  // Until the younger one is gone.
  EXPECT_TRUE(directory.add("", leased("old", {}, 1, seconds(106)), kStart + seconds(6)).ok());
}

TEST(BootstrapDirectory, ARankThatRestartsUnderItsEngineIdIsAnotherIncarnation) {
  Directory directory({});
  ASSERT_TRUE(directory.add("", leased("e", {}, 1, seconds(100)), kStart).ok());
  EXPECT_EQ(directory.add("", leased("e", {}, 2, seconds(1)), kStart)->change, Change::replaced);
  EXPECT_EQ(code_of(directory.add("", leased("e", {}, 1, seconds(100)), kStart)), ErrorCode::conflict);
  EXPECT_EQ(directory.renew("", {"e", {}, 1}, kStart).error().code, ErrorCode::conflict);
  EXPECT_TRUE(directory.renew("", {"e", {}, 2}, kStart).ok());
  EXPECT_TRUE(directory.renew("", {"e", {}, 0}, kStart).ok());
}

TEST(BootstrapDirectory, AnEntryEndsWithItsTtlUnlessRenewed) {
  Directory directory({});
  EXPECT_EQ(directory.add("", leased("e", {0, 0, 0}, 1, seconds(9)), kStart)->ttl, seconds(5));
  ASSERT_TRUE(directory.add("", leased("e", {0, 1, 0}, 2, seconds(9)), kStart).ok());
  EXPECT_EQ(*directory.renew("", {"e", {0, 1, 0}, 2}, kStart + seconds(4)), seconds(5));
  EXPECT_EQ(directory.expire(kStart + seconds(5) - Duration(1)), 0U);
  EXPECT_EQ(directory.expire(kStart + seconds(5)), 1U);
  EXPECT_EQ(directory.query(""), R"({"0":{"engine_id":"e","worker_addr":{"1":{"0":"tcp://10.0.0.2:41234"}}}})");
  EXPECT_EQ(directory.renew("", {"e", {0, 0, 0}, 1}, kStart + seconds(5)).error().code, ErrorCode::not_found);
  EXPECT_EQ(directory.expire(kStart + seconds(9)), 1U);
  EXPECT_EQ(directory.query(""), "{}");
  EXPECT_EQ(directory.namespaces(), 0U);
}

TEST(BootstrapDirectory, ARegistrationAgainRenewsTheTtlToo) {
  Directory directory({});
  ASSERT_TRUE(directory.add("", leased("e", {}, 1, seconds(0)), kStart).ok());
  ASSERT_TRUE(directory.add("", leased("e", {}, 1, seconds(4)), kStart + seconds(4)).ok());
  EXPECT_EQ(directory.expire(kStart + seconds(8)), 0U);
  EXPECT_EQ(directory.expire(kStart + seconds(9)), 1U);
}

TEST(BootstrapDirectory, WorkersThatNeverRenewStayUnlessToldOtherwise) {
  Directory keeps({});
  EXPECT_EQ(keeps.add("", worker("e", {}), kStart)->ttl, Duration(0));
  EXPECT_EQ(keeps.expire(kStart + std::chrono::hours(1000)), 0U);
  Directory::Limits limits;
  limits.plain_ttl = seconds(60);
  Directory forgets(limits);
  ASSERT_TRUE(forgets.add("", worker("e", {}), kStart).ok());
  EXPECT_EQ(forgets.expire(kStart + seconds(60)), 1U);
}

TEST(BootstrapDirectory, TtlsAreKeptWithinTheLimits) {
  Directory directory({});
  EXPECT_EQ(directory.add("", leased("e", {0, 0, 0}, 1, seconds(0), Duration(1)), kStart)->ttl,
            std::chrono::milliseconds(500));
  EXPECT_EQ(directory.add("", leased("e", {0, 1, 0}, 1, seconds(0), std::chrono::hours(9)), kStart)->ttl, seconds(60));
}

TEST(BootstrapDirectory, NamespacesDoNotSeeEachOther) {
  Directory directory({});
  ASSERT_TRUE(directory.add("a", worker("ea", {}), kStart).ok());
  ASSERT_TRUE(directory.add("b", worker("eb", {}), kStart).ok());
  EXPECT_EQ(directory.workers("a").at(0)->engine_id, "ea");
  EXPECT_EQ(directory.workers("b").at(0)->engine_id, "eb");
  EXPECT_TRUE(directory.workers("").empty());
  EXPECT_EQ(directory.remove("a", "eb", std::nullopt, 0), 0U);
}

TEST(BootstrapDirectory, RemovesARankOrAWholeEngineOfThatIncarnationOnly) {
  Directory directory({});
  for (uint32_t dp = 0; dp < 2; ++dp) {
    for (uint32_t tp = 0; tp < 2; ++tp) {
      ASSERT_TRUE(directory.add("", leased("e", {dp, tp, 0}, 10 + tp, seconds(0)), kStart).ok());
    }
  }
  EXPECT_EQ(directory.remove("", "e", Rank{0, 0, 0}, 99), 0U);
  EXPECT_EQ(directory.remove("", "x", Rank{0, 0, 0}, 0), 0U);
  EXPECT_EQ(directory.remove("", "e", Rank{0, 0, 0}, 10), 1U);
  EXPECT_EQ(directory.remove("", "e", std::nullopt, 0), 3U);
  EXPECT_EQ(directory.size(), 0U);
  EXPECT_EQ(directory.expire(kStart + seconds(60)), 0U);
}

TEST(BootstrapDirectory, FullTablesRefuseAndKnownWorkersGoOn) {
  Directory::Limits limits;
  limits.namespaces = 2;
  limits.entries = 3;
  Directory directory(limits);
  ASSERT_TRUE(directory.add("a", worker("e", {0, 0, 0}), kStart).ok());
  ASSERT_TRUE(directory.add("b", worker("e", {0, 0, 0}), kStart).ok());
  EXPECT_EQ(code_of(directory.add("c", worker("e", {0, 0, 0}), kStart)), ErrorCode::resource_exhausted);
  ASSERT_TRUE(directory.add("b", worker("e", {0, 1, 0}), kStart).ok());
  EXPECT_EQ(code_of(directory.add("b", worker("e", {1, 0, 0}), kStart)), ErrorCode::resource_exhausted);
  EXPECT_EQ(directory.query("b"), R"({"0":{"engine_id":"e","worker_addr":{"0":{"0":"tcp://10.0.0.2:41234"},)"
                                  R"("1":{"0":"tcp://10.0.0.2:41234"}}}})");
  EXPECT_TRUE(directory.add("b", worker("new", {0, 1, 0}), kStart).ok());
}

TEST(BootstrapDirectory, RefusesWhatMakesNoSense) {
  Directory directory({});
  const auto refused = [&](const Registration& wrong) {
    return code_of(directory.add("", wrong, kStart)) == ErrorCode::invalid_argument;
  };
  EXPECT_TRUE(refused(worker("", {})));
  EXPECT_TRUE(refused(worker(std::string(257, 'e'), {})));
  EXPECT_TRUE(refused(worker("e\n", {})));
  EXPECT_TRUE(refused(worker("e", {4096, 0, 0})));
  EXPECT_TRUE(refused(worker("e", {0, 0xffffffff, 0})));
  EXPECT_TRUE(refused(worker("e", {0, 0, 4096})));
  for (const char* addr : {"", "10.0.0.2:1", "tcp://", "tcp://h", "tcp://h:0", "tcp://h:70000", "tcp://h:1/x"}) {
    EXPECT_TRUE(refused(worker("e", {}, addr))) << addr;
  }
  Registration elsewhere = worker("e", {});
  elsewhere.http = "http://169.254.169.254:80";
  EXPECT_TRUE(refused(elsewhere));
  elsewhere.http = "http://10.0.0.2:8998";
  EXPECT_FALSE(refused(elsewhere));
}

TEST(BootstrapDirectory, ChangesAtRandomKeepTheCountsRight) {
  Directory::Limits limits;
  limits.entries = 40;
  limits.namespaces = 3;
  Directory directory(limits);
  uint64_t state = 7;
  const auto below = [&](uint64_t bound) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<uint32_t>((state >> 33) % bound);
  };
  TimePoint now = kStart;
  for (int i = 0; i < 20000; ++i) {
    now += std::chrono::milliseconds(below(100));
    const std::string space(1, static_cast<char>('a' + below(4)));
    const std::string engine(1, static_cast<char>('A' + below(3)));
    const Rank rank{below(3), below(4), below(2)};
    const uint32_t action = below(10);
    if (action < 6) {
      static_cast<void>(directory.add(space, leased(engine, rank, below(2), seconds(below(9))), now).ok());
    } else if (action < 8) {
      static_cast<void>(directory.renew(space, {engine, rank, 0}, now).ok());
    } else {
      directory.remove(space, engine, action == 8 ? std::optional(rank) : std::nullopt, 0);
    }
    size_t entries = 0;
    size_t spaces = 0;
    for (const char* name : {"a", "b", "c", "d"}) {
      const size_t here = directory.workers(name).size();
      entries += here;
      spaces += here > 0 ? 1 : 0;
      EXPECT_EQ(directory.query(name) == "{}", here == 0);
    }
    ASSERT_EQ(directory.size(), entries);
    ASSERT_EQ(directory.namespaces(), spaces);
    ASSERT_LE(entries, limits.entries);
  }
  directory.expire(now + seconds(100));
  EXPECT_EQ(directory.size(), 0U);
  EXPECT_EQ(directory.namespaces(), 0U);
}

}  // namespace
}  // namespace kvferry::bootstrap
