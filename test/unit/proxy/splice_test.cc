#include "proxy/splice.h"

#include <gtest/gtest.h>

#include <array>

namespace kvferry::proxy {
namespace {

std::string padded(std::string text) {
  text.reserve(text.size() + 64);
  return text;
}

std::string spliced(const std::string& text, std::vector<std::string_view> removed, std::string_view inserted) {
  Scanner scanner;
  const std::string body = padded(text);
  const auto members = scanner.scan(body);
  if (!members.ok()) return "error: " + members.error().to_string();
  const Spliced out = splice(*members, removed, inserted);
  const std::string joined = out.joined();
  EXPECT_EQ(joined.size(), out.size);
  return joined;
}

TEST(Splice, InsertsAndKeepsEveryOtherByte) {
  EXPECT_EQ(spliced(" {\n \"a\" : 1.50 ,\"b\":[1, {\"x\":2}] } \n", {}, "\"k\":0"),
            " {\"k\":0,\n \"a\" : 1.50 ,\"b\":[1, {\"x\":2}] } \n");
  EXPECT_EQ(spliced("{}", {}, "\"k\":0"), "{\"k\":0}");
  EXPECT_EQ(spliced("{ }", {}, ""), "{ }");
}

TEST(Splice, RemovesMembersWithTheirCommas) {
  EXPECT_EQ(spliced(R"({"a":1,"b":2,"c":3})", {"a"}, ""), R"({"b":2,"c":3})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2,"c":3})", {"b"}, ""), R"({"a":1,"c":3})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2,"c":3})", {"c"}, ""), R"({"a":1,"b":2})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2,"c":3})", {"a", "b"}, "\"k\":0"), R"({"k":0,"c":3})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2,"c":3})", {"b", "c"}, "\"k\":0"), R"({"k":0,"a":1})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2,"c":3})", {"a", "c"}, "\"k\":0"), R"({"k":0,"b":2})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2})", {"a", "b"}, "\"k\":0"), R"({"k":0})");
  EXPECT_EQ(spliced(R"({"a":1,"b":2})", {"a", "b"}, ""), R"({})");
}

TEST(Splice, RemovesRepeatedAndEscapedNames) {
  EXPECT_EQ(spliced(R"({"a":1,"k":{"x":[]},"b":2,"k":"}"})", {"k"}, ""), R"({"a":1,"b":2})");
  EXPECT_EQ(spliced(R"({"\u006b":1,"b":2})", {"k"}, ""), R"({"b":2})");
  EXPECT_EQ(spliced(R"({"a\"b":1,"b":2})", {"a\"b"}, ""), R"({"b":2})");
}

TEST(Splice, LeavesNestedNamesAlone) {
  EXPECT_EQ(spliced(R"({"a":{"k":1},"s":"{\"k\":2}"})", {"k"}, ""), R"({"a":{"k":1},"s":"{\"k\":2}"})");
}

TEST(Scan, FindsValuesInRawText) {
  Scanner scanner;
  const std::string body = padded(R"({"a" : "x\"y" , "b":-1.5e3 ,"c":[ ] ,"d":null,"a":true })");
  const auto members = scanner.scan(body);
  ASSERT_TRUE(members.ok());
  ASSERT_EQ(members->all.size(), 5U);
  EXPECT_EQ(members->all[0].value, "\"x\\\"y\"");
  EXPECT_EQ(members->find("b")->value, "-1.5e3");
  EXPECT_EQ(members->find("c")->value, "[ ]");
  EXPECT_EQ(members->find("d")->value, "null");
  EXPECT_EQ(members->find("a")->value, "true");
  EXPECT_EQ(members->find("z"), nullptr);
}

TEST(Scan, Trap16RefusesWhatIsNotOneObject) {
  Scanner scanner;
  for (const char* bad :
       {"", " ", "[]", "1", "\"a\"", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1 \"b\":2}", "{\"a\":1}}",
        "{\"a\":1} {\"b\":2}", "{\"a\":1}x", "{\"a\":\"x}", "{\"a\":[1}", "nul", "{a:1}", "\xff\xfe{"}) {
    EXPECT_FALSE(scanner.scan(padded(bad)).ok()) << bad;
  }
}

TEST(Scan, RefusesMoreMembersThanARequestHas) {
  Scanner scanner;
  const auto with = [](size_t members) {
    std::string text = "{\"\":1";
    for (size_t i = 1; i < members; ++i) text += ",\"\":1";
    return padded(text + "}");
  };
  const std::string most = with(kMaxMembers), more = with(kMaxMembers + 1);
  const auto scanned = scanner.scan(most);
  ASSERT_TRUE(scanned.ok()) << scanned.error().to_string();
  EXPECT_EQ(scanned->all.size(), kMaxMembers);
  const auto refused = scanner.scan(more);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().to_string().find("more than 1000 members"), std::string::npos);
  EXPECT_TRUE(scanner.scan(padded("{\"a\":1}")).ok()) << "the parser was left in the middle";
}

TEST(Scan, WorksAgainAfterAFailure) {
  Scanner scanner;
  EXPECT_FALSE(scanner.scan(padded("{\"a\":")).ok());
  EXPECT_TRUE(scanner.scan(padded("{\"a\":1}")).ok());
}

}  // namespace
}  // namespace kvferry::proxy
