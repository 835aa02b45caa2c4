#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>

#include "common/bytes.h"
#include "common/random.h"

namespace kvferry {
namespace {

TEST(ByteReader, ReadsBackWhatWasWritten) {
  std::string out;
  ByteWriter writer(out);
  writer.put(uint8_t{7});
  writer.put(uint16_t{0x1234});
  writer.put(std::numeric_limits<uint64_t>::max());
  writer.put_string(std::string("nul \0 inside", 12));
  writer.put_string("");

  ByteReader reader(as_bytes(out));
  EXPECT_EQ(reader.get<uint8_t>(), 7);
  EXPECT_EQ(reader.get<uint16_t>(), 0x1234);
  EXPECT_EQ(reader.get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(reader.get_string(12), std::string("nul \0 inside", 12));
  EXPECT_EQ(reader.get_string(0), "");
  EXPECT_TRUE(reader.ok());
  EXPECT_TRUE(reader.at_end());
}

TEST(ByteWriter, WritesLittleEndian) {
  std::string out;
  ByteWriter(out).put(uint32_t{0x01020304});
  EXPECT_EQ(out, std::string("\x04\x03\x02\x01"));
}

TEST(ByteReader, GivesZerosPastTheEndAndStaysFailed) {
  const std::string three = "\xff\xff\xff";
  ByteReader reader(as_bytes(three));
  EXPECT_EQ(reader.get<uint32_t>(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.get<uint8_t>(), 0) << "bytes that were left must not be read after a failure";
  EXPECT_TRUE(reader.get_bytes(1).empty());
  EXPECT_EQ(reader.get_string(100), "");
  EXPECT_FALSE(reader.ok());
}

TEST(ByteReader, ReadsNothingFromNothing) {
  ByteReader reader(ByteSpan{});
  EXPECT_TRUE(reader.at_end());
  EXPECT_TRUE(reader.get_bytes(0).empty());
  EXPECT_TRUE(reader.ok()) << "an empty read of nothing is no error";
  EXPECT_EQ(reader.get<uint8_t>(), 0);
  EXPECT_FALSE(reader.ok());
}

TEST(ByteReader, RefusesAStringAboveItsLimit) {
  std::string out;
  ByteWriter(out).put_string("four");
  ByteReader at_limit(as_bytes(out));
  EXPECT_EQ(at_limit.get_string(4), "four");
  ByteReader above(as_bytes(out));
  EXPECT_EQ(above.get_string(3), "");
  EXPECT_FALSE(above.ok());
}

TEST(ByteReader, RefusesAStringThatClaimsMoreThanThereIs) {
  std::string out;
  ByteWriter writer(out);
  writer.put(uint32_t{0xffffffff});
  writer.put_bytes("short");
  ByteReader reader(as_bytes(out));
  EXPECT_EQ(reader.get_string(std::numeric_limits<size_t>::max()), "");
  EXPECT_FALSE(reader.ok());
}

TEST(ByteReader, NeverReadsOutsideOfGarbage) {
  SeededRandom random(42);
  for (int round = 0; round < 5000; ++round) {
    const std::string garbage = random.token(random.below(40));
    ByteReader reader(as_bytes(garbage));
    while (reader.ok() && !reader.at_end()) {
      const ByteSpan before = reader.rest();
      const std::string text = reader.get_string(16);
      ASSERT_LE(text.size(), 16u);
      if (reader.ok()) {
        ASSERT_EQ(reader.rest().size() + 4 + text.size(), before.size());
      }
    }
    ASSERT_TRUE(reader.at_end());
  }
}

TEST(ToHex, CoversEveryNibbleAndHighBytes) {
  EXPECT_EQ(to_hex(""), "");
  EXPECT_EQ(to_hex(std::string("\x00\x0f\xf0\xff\xab", 5)), "000ff0ffab");
}

TEST(EqualSecrets, ComparesContentAndLength) {
  EXPECT_TRUE(equal_secrets("", ""));
  EXPECT_TRUE(equal_secrets("token", "token"));
  EXPECT_FALSE(equal_secrets("token", "tokeN"));
  EXPECT_FALSE(equal_secrets("Token", "token"));
  EXPECT_FALSE(equal_secrets("token", "toke"));
  EXPECT_FALSE(equal_secrets(std::string("a\0b", 3), std::string("a\0c", 3)));
}

}  // namespace
}  // namespace kvferry
