#include <gtest/gtest.h>

#include "engine/fabric/ofi/name.h"

// Names of libfabric's endpoints: what peers are told in hellos, and tell.

namespace kvferry::ofi {
namespace {

TEST(OfiName, OfASocketIsReadAsHostAndPort) {
  for (const char* text : {"10.0.0.7:7100", "0.0.0.0:1", "[::1]:65535", "[fe80::1:2]:80"}) {
    const Name name = Name::parse(text);
    EXPECT_TRUE(name.is_socket()) << text;
    EXPECT_EQ(name.to_text(), text);
  }
}

TEST(OfiName, OfAnotherKindIsCarriedAsItsBytes) {
  const Name name({0x66, 0x69, 0x00, 0xff});
  EXPECT_FALSE(name.is_socket());
  EXPECT_EQ(name.to_text(), "x666900ff");
  EXPECT_EQ(Name::parse(name.to_text()).bytes(), name.bytes());
}

TEST(OfiName, ThatIsNoneIsEmpty) {
  for (const char* text : {"", "10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:65536", "host:80", "x6g", "xZZ",
                           "x02001bbc0a0000070000000000000000"})
    EXPECT_TRUE(Name::parse(text).empty()) << text;
}

TEST(OfiName, OfASocketAtEveryAddressTakesAHostFromElsewhere) {
  const Name any = Name::parse("0.0.0.0:7100");
  EXPECT_TRUE(any.is_wildcard());
  EXPECT_EQ(any.at_host_of(Name::parse("10.0.0.7:9")).to_text(), "10.0.0.7:7100");
  EXPECT_EQ(any.at_host_of(Name::parse("[::1]:9")).to_text(), "0.0.0.0:7100") << "a host of another family";
  EXPECT_EQ(any.as_seen_by(Name::parse("127.0.0.1:9")).to_text(), "127.0.0.1:7100");
  EXPECT_FALSE(Name::parse("127.0.0.1:9").is_wildcard());
  EXPECT_TRUE(Name::parse("[::]:9").is_wildcard());
}

// A peer's claim: lengths and families that are not what they seem.
TEST(OfiName, ThatIsCutOffIsNoSocket) {
  std::vector<uint8_t> bytes = Name::parse("10.0.0.7:7100").bytes();
  bytes.pop_back();
  EXPECT_FALSE(Name(bytes).is_socket());
  EXPECT_FALSE(Name(std::vector<uint8_t>{0x02}).is_socket());
  EXPECT_EQ(Name({0x02, 0x00}).at_host_of(Name::parse("10.0.0.7:9")).bytes().size(), 2U);
  EXPECT_FALSE(Name().is_wildcard());
}

}  // namespace
}  // namespace kvferry::ofi
