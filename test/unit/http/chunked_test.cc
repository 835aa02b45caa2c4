#include "http/chunked.h"

#include <gtest/gtest.h>

namespace kvferry::http {
namespace {

constexpr auto kSkip = ChunkScanner::Extensions::skip;
constexpr auto kRefuse = ChunkScanner::Extensions::refuse;
const std::string kBody = "5\r\nhello\r\n1a;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: x\r\n\r\n";

TEST(ChunkScanner, FindsTheEndHoweverTheBytesAreSplit) {
  for (size_t cut = 0; cut <= kBody.size(); ++cut) {
    ChunkScanner scanner(kSkip);
    std::string payload;
    const auto first = scanner.scan(std::string_view(kBody).substr(0, cut), &payload);
    ASSERT_TRUE(first.ok()) << cut;
    ASSERT_EQ(*first, cut);
    ASSERT_EQ(scanner.done(), cut == kBody.size());
    const auto second = scanner.scan(kBody.substr(cut) + "NEXT", &payload);
    ASSERT_TRUE(second.ok()) << cut;
    EXPECT_EQ(*second, kBody.size() - cut);
    EXPECT_TRUE(scanner.done());
    EXPECT_EQ(payload, "helloabcdefghijklmnopqrstuvwxyz");
  }
}

TEST(ChunkScanner, RefusesExtensionsWhereTold) {
  EXPECT_FALSE(ChunkScanner(kRefuse).scan(kBody).ok());
  EXPECT_TRUE(ChunkScanner(kRefuse).scan("3\r\nabc\r\n0\r\n\r\n").ok());
}

TEST(ChunkScanner, RefusesWhatIsNotFraming) {
  for (const std::string bad :
       {"\r\n", "x\r\n", " 5\r\nhello\r\n", "5\nhello\r\n", "5\r\nhelloX\r\n", "5\r\nhello\n0\r\n", "-1\r\n",
        "0x5\r\nhello\r\n", "fffffffffffffffff\r\n", "5 \r\nhello\r\n", "0\r\nA: b\n\r\n"}) {
    EXPECT_FALSE(ChunkScanner(kSkip).scan(bad).ok()) << bad;
  }
}

TEST(ChunkScanner, BoundsExtensionsAndTrailers) {
  EXPECT_FALSE(ChunkScanner(kSkip).scan("1;" + std::string(10000, 'a')).ok());
  std::string trailers = "0\r\n";
  for (int i = 0; i < 1000; ++i) trailers += "A: bbbbbbbbbbbbbbbbbbbb\r\n";
  EXPECT_FALSE(ChunkScanner(kSkip).scan(trailers).ok());
}

TEST(ChunkScanner, BoundsHowManyTrailersThereAre) {
  std::string trailers = "0\r\n";
  for (size_t i = 0; i < kMaxFields; ++i) trailers += "A:\r\n";
  EXPECT_TRUE(ChunkScanner(kSkip).scan(trailers + "\r\n").ok());
  EXPECT_FALSE(ChunkScanner(kSkip).scan(trailers + "A:\r\n\r\n").ok());
}

TEST(ChunkScanner, KnowsWhereAChunkOfOursMayGo) {
  ChunkScanner scanner(kSkip);
  EXPECT_TRUE(scanner.between_chunks());
  ASSERT_TRUE(scanner.scan("5\r\nhel").ok());
  EXPECT_FALSE(scanner.between_chunks());
  ASSERT_TRUE(scanner.scan("lo\r\n").ok());
  EXPECT_TRUE(scanner.between_chunks());
  ASSERT_TRUE(scanner.scan("0\r\n").ok());
  EXPECT_FALSE(scanner.between_chunks());
}

TEST(BodyTracker, CountsSizedBodies) {
  ResponseHead head;
  head.framing = Framing::length;
  head.content_length = 5;
  BodyTracker tracker(head);
  EXPECT_EQ(*tracker.take("abc"), 3U);
  EXPECT_FALSE(tracker.end_of_stream());
  EXPECT_EQ(*tracker.take("defgh"), 2U);
  EXPECT_TRUE(tracker.done());
}

TEST(BodyTracker, TheEndOfTheStreamEndsOnlyUnframedBodies) {
  ResponseHead head;
  head.framing = Framing::until_close;
  BodyTracker open(head);
  EXPECT_FALSE(open.done());
  EXPECT_TRUE(open.end_of_stream());
  head.framing = Framing::chunked;
  EXPECT_FALSE(BodyTracker(head).end_of_stream());
}

}  // namespace
}  // namespace kvferry::http
