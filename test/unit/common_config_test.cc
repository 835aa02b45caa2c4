#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <string>
#include <vector>

#include "common/config.h"

namespace kvferry {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::minutes;

Duration duration_of(const std::string& text) {
  auto parsed = parse_duration(text);
  return parsed ? *parsed : Duration(-1);
}

TEST(ParseDuration, KnowsItsUnits) {
  EXPECT_EQ(duration_of("30"), std::chrono::seconds(30));
  EXPECT_EQ(duration_of("30s"), std::chrono::seconds(30));
  EXPECT_EQ(duration_of("1.5s"), milliseconds(1500));
  EXPECT_EQ(duration_of(".5"), milliseconds(500));
  EXPECT_EQ(duration_of("200ms"), milliseconds(200));
  EXPECT_EQ(duration_of("50us"), microseconds(50));
  EXPECT_EQ(duration_of("2m"), minutes(2));
  EXPECT_EQ(duration_of("1h"), hours(1));
  EXPECT_EQ(duration_of("0"), Duration(0));
}

TEST(ParseDuration, RefusesWhatIsNotOne) {
  for (const char* text : {"", "s", "-1", "-0.5s", "1 s", " 1", "1s ", "1S", "1d", "ten", "1.2.3", "nan", "inf", "0x10",
                           "1e300h", "999999999999h", "+1"})
    EXPECT_FALSE(parse_duration(text).ok()) << '"' << text << '"';
}

TEST(ParseDuration, NamesTheTextInItsError) {
  const auto parsed = parse_duration("soon");
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(parsed.error().message.find("\"soon\""), std::string::npos);
}

uint64_t size_of(const std::string& text) {
  auto parsed = parse_size(text);
  return parsed ? *parsed : std::numeric_limits<uint64_t>::max();
}

TEST(ParseSize, KnowsItsUnits) {
  EXPECT_EQ(size_of("0"), 0u);
  EXPECT_EQ(size_of("4096"), 4096u);
  EXPECT_EQ(size_of("4096B"), 4096u);
  EXPECT_EQ(size_of("4k"), 4096u);
  EXPECT_EQ(size_of("4KB"), 4096u);
  EXPECT_EQ(size_of("1.5K"), 1536u);
  EXPECT_EQ(size_of("64M"), 64u << 20);
  EXPECT_EQ(size_of("64MiB"), 64u << 20);
  EXPECT_EQ(size_of("2G"), 2ull << 30);
  EXPECT_EQ(size_of("1T"), 1ull << 40);
}

TEST(ParseSize, RefusesWhatIsNotOne) {
  for (const char* text : {"", "K", "B", "-1", "1 K", "1KK", "1P", "much", "nan", "inf", "1e30", "99999999T", "1.K.5"})
    EXPECT_FALSE(parse_size(text).ok()) << '"' << text << '"';
}

TEST(SplitList, DropsEmptyParts) {
  using Parts = std::vector<std::string>;
  EXPECT_EQ(split_list(""), Parts{});
  EXPECT_EQ(split_list(",,"), Parts{});
  EXPECT_EQ(split_list("a"), Parts{"a"});
  EXPECT_EQ(split_list(",a,b,,c,"), (Parts{"a", "b", "c"}));
  EXPECT_EQ(split_list("a b;c", ';'), (Parts{"a b", "c"}));
}

Environment holding(const std::string& name, const std::string& value) {
  return Environment(std::map<std::string, std::string>{{name, value}});
}

TEST(Environment, GivesTheFallbackForUnsetAndEmpty) {
  const Environment environment = holding("EMPTY", "");
  for (const char* name : {"EMPTY", "UNSET"}) {
    EXPECT_FALSE(environment.get(name).has_value());
    EXPECT_EQ(*environment.integer(name, 7, 0, 10), 7);
    EXPECT_EQ(*environment.boolean(name, true), true);
    EXPECT_EQ(*environment.duration(name, milliseconds(3)), milliseconds(3));
    EXPECT_EQ(*environment.size(name, 9), 9u);
  }
}

TEST(Environment, KeepsIntegersWithinTheirBounds) {
  const auto integer = [](const std::string& text) { return holding("N", text).integer("N", 5, -3, 10); };
  EXPECT_EQ(*integer("-3"), -3);
  EXPECT_EQ(*integer("10"), 10);
  for (const char* text : {"-4", "11", "1.0", "1x", "x", " 1", "99999999999999999999"})
    EXPECT_FALSE(integer(text).ok()) << text;
}

TEST(Environment, NamesVariableValueAndWishInItsErrors) {
  const Environment environment(std::map<std::string, std::string>{
      {"KVFERRY_PORT", "http"}, {"KVFERRY_FLAG", "maybe"}, {"KVFERRY_WAIT", "long"}});
  EXPECT_EQ(environment.integer("KVFERRY_PORT", 0, 1, 65535).error().message,
            "KVFERRY_PORT must be an integer from 1 to 65535, not \"http\"");
  EXPECT_EQ(environment.boolean("KVFERRY_FLAG", false).error().message, "KVFERRY_FLAG must be 0 or 1, not \"maybe\"");
  EXPECT_NE(environment.duration("KVFERRY_WAIT", {}).error().message.find("KVFERRY_WAIT"), std::string::npos);
  EXPECT_NE(environment.size("KVFERRY_WAIT", {}).error().message.find("\"long\""), std::string::npos);
}

TEST(Environment, ReadsTheUsualBooleans) {
  for (const char* yes : {"1", "true", "yes", "on"}) EXPECT_TRUE(*holding("B", yes).boolean("B", false)) << yes;
  for (const char* no : {"0", "false", "no", "off"}) EXPECT_FALSE(*holding("B", no).boolean("B", true)) << no;
  EXPECT_FALSE(holding("B", "2").boolean("B", true).ok());
}

TEST(Environment, KeepsEqualsSignsOfTheProcessValues) {
  ASSERT_EQ(setenv("KVFERRY_UNIT_TEST", "a=b", 1), 0);
  EXPECT_EQ(Environment::of_process().get("KVFERRY_UNIT_TEST"), "a=b");
  ASSERT_EQ(unsetenv("KVFERRY_UNIT_TEST"), 0);
  EXPECT_EQ(Environment::of_process().get("KVFERRY_UNIT_TEST"), std::nullopt);
}

}  // namespace
}  // namespace kvferry
