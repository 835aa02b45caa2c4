#include "http/parser.h"

#include <gtest/gtest.h>

#include <string>

namespace kvferry::http {
namespace {

// 0: accepted.
int status_of(const std::string& head) {
  RequestHead out;
  const auto fault = parse_request_head(head, out);
  return fault ? fault->status : 0;
}

const std::string kStart = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";

TEST(RequestHead, ReadsWhatIsThere) {
  RequestHead head;
  const auto fault = parse_request_head(
      "POST /v1/x?force=1&a=b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 12\r\nX-One:  two words \r\n\r\n", head);
  ASSERT_FALSE(fault.has_value()) << fault->message;
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path(), "/v1/x");
  EXPECT_EQ(head.query("force"), "1");
  EXPECT_EQ(head.query("none"), std::nullopt);
  EXPECT_EQ(head.headers.get("x-one"), "two words");
  EXPECT_EQ(head.framing, Framing::length);
  EXPECT_EQ(head.content_length, 12U);
  EXPECT_TRUE(head.keep_alive);
}

TEST(RequestHead, KeepAliveFollowsVersionAndConnection) {
  RequestHead old, closing;
  ASSERT_FALSE(parse_request_head("GET / HTTP/1.0\r\n\r\n", old));
  EXPECT_FALSE(old.keep_alive);
  ASSERT_FALSE(parse_request_head("GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, Close\r\n\r\n", closing));
  EXPECT_FALSE(closing.keep_alive);
}

TEST(RequestSmuggling, ConflictingLengthsAreRefused) {
  EXPECT_EQ(status_of(kStart + "Content-Length: 3\r\nContent-Length: 4\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + "Content-Length: 3\r\nContent-Length: 3\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"), 400);
}

TEST(RequestSmuggling, OddLengthsAreRefused) {
  for (const char* value : {"+3", "-3", "0x3", "3,3", "3 3", "", "99999999999999999999", "3;"}) {
    EXPECT_EQ(status_of(kStart + "Content-Length: " + value + "\r\n\r\n"), 400) << value;
  }
}

TEST(RequestSmuggling, OtherCodingsThanChunkedAreRefused) {
  for (const char* value :
       {"gzip, chunked", "chunked, chunked", "xchunked", "chunked;q=1", "identity", "\"chunked\""}) {
    EXPECT_EQ(status_of(kStart + "Transfer-Encoding: " + value + "\r\n\r\n"), 400) << value;
  }
  EXPECT_EQ(status_of(kStart + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
  EXPECT_EQ(status_of("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

TEST(RequestSmuggling, FoldedLinesAreRefused) {
  EXPECT_EQ(status_of(kStart + "X-A: b\r\n c\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + "Transfer-Encoding:\r\n chunked\r\n\r\n"), 400);
}

TEST(RequestSmuggling, BareLineEndsAreRefused) {
  EXPECT_EQ(status_of("GET / HTTP/1.1\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + "X-A: b\nContent-Length: 5\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + "X-A: b\rContent-Length: 5\r\n\r\n"), 400);
}

TEST(RequestSmuggling, SpacesAndControlsInNamesAreRefused) {
  EXPECT_EQ(status_of(kStart + "Content-Length : 5\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + " Content-Length: 5\r\n\r\n"), 400);
  EXPECT_EQ(status_of(kStart + std::string("X-A: b\0c\r\n\r\n", 12)), 400);
}

TEST(RequestSmuggling, ExactlyOneHostIsNeeded) {
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
}

TEST(RequestHead, OtherTargetsAndVersionsAreRefused) {
  EXPECT_EQ(status_of("GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("CONNECT evil:80 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
  EXPECT_NE(status_of("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 0);
}

TEST(RequestHead, OddRequestLinesAreRefused) {
  const std::string host = "\r\nHost: a\r\n\r\n";
  for (const char* line :
       {"GET / x HTTP/1.1", "GET /a b HTTP/1.1", "GET  / HTTP/1.1", " GET / HTTP/1.1", "GET / HTTP/1.1 ",
        "GET /\tx HTTP/1.1", "G(T / HTTP/1.1", "GET / http/1.1", "GET HTTP/1.1", "GET /", "GET", ""})
    EXPECT_EQ(status_of(line + host), 400) << line;
  for (const char* line : {"GET / HTTP/2.0", "GET / HTTP/1.2", "GET / HTTP/1.10", "GET / HTTP/"})
    EXPECT_EQ(status_of(line + host), 505) << line;
}

TEST(RequestHead, LinesThatAreNoFieldsAreRefused) {
  for (const char* line : {"no colon", ": no name", "X Y: z", "X@: z", "\xc3\xa4: z"})
    EXPECT_EQ(status_of(kStart + line + "\r\n\r\n"), 400) << line;
  RequestHead head;
  ASSERT_FALSE(parse_request_head(kStart + "X-Empty:\r\nX-Tabs:\t a:b \t\r\nX-High: \xc3\xa4\r\n\r\n", head));
  EXPECT_EQ(head.headers.get("x-empty"), "");
  EXPECT_EQ(head.headers.get("x-tabs"), "a:b");
  EXPECT_EQ(head.headers.get("x-high"), "\xc3\xa4");
}

std::string fields(size_t count) {
  std::string lines;
  for (size_t i = 0; i < count; ++i) lines += "X-" + std::to_string(i) + ": a\r\n";
  return lines;
}

TEST(RequestHead, ManyFieldsAreRefused) {
  EXPECT_EQ(status_of(kStart + fields(kMaxFields - 1) + "\r\n"), 0) << "Host is one more";
  EXPECT_EQ(status_of(kStart + fields(kMaxFields) + "\r\n"), 431);
}

TEST(RequestHead, ManyOptionsOfTheConnectionAreRefused) {
  const auto options = [](size_t count) {
    std::string list = "Connection: a";
    for (size_t i = 1; i < count; ++i) list += ",a";
    return list + "\r\n";
  };
  EXPECT_EQ(status_of(kStart + options(kMaxFields) + "\r\n"), 0);
  EXPECT_EQ(status_of(kStart + options(kMaxFields + 1) + "\r\n"), 400);
  EXPECT_EQ(status_of(kStart + options(kMaxFields) + options(1) + "\r\n"), 400);
}

TEST(RequestHead, AHeadEndsWithItsEmptyLine) {
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\n\r\nmore"), 400);
  EXPECT_EQ(status_of(""), 400);
}

TEST(FindHeadEnd, FindsItHoweverTheBytesArrive) {
  const std::string text = "GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
  const size_t end = text.size() - 4;
  for (size_t first = 0; first < text.size(); ++first) {
    size_t scanned = 0;
    auto found = find_head_end(std::string_view(text).substr(0, first), scanned);
    if (first < end) {
      EXPECT_FALSE(found.has_value()) << first;
      found = find_head_end(text, scanned);
    }
    EXPECT_EQ(found, end) << first;
  }
}

TEST(ResponseHead, ReadsItsStatusLine) {
  const auto parsed = parse_response_head("HTTP/1.0 404 Not Found here\r\n\r\n", false);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->status, 404);
  EXPECT_EQ(parsed->reason, "Not Found here");
  EXPECT_EQ(parsed->minor_version, 0);
  for (const char* line : {"HTTP/1.1 200", "HTTP/1.1 200 "}) {
    const auto bare = parse_response_head(std::string(line) + "\r\n\r\n", false);
    ASSERT_TRUE(bare.ok()) << line;
    EXPECT_EQ(bare->reason, "");
  }
  for (const char* line : {"HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 2x0 OK", "HTTP/1.1 099 OK",
                           "HTTP/1.1  200 OK", "HTTP/2.0 200 OK", "http/1.1 200 OK", "HTTP/1.1", "200 OK", ""})
    EXPECT_FALSE(parse_response_head(std::string(line) + "\r\n\r\n", false).ok()) << line;
}

TEST(ResponseHead, ManyFieldsAreRefused) {
  const std::string start = "HTTP/1.1 200 OK\r\n";
  EXPECT_TRUE(parse_response_head(start + fields(kMaxFields) + "\r\n", false).ok());
  const auto refused = parse_response_head(start + fields(kMaxFields + 1) + "\r\n", false);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().to_string().find("too many fields"), std::string::npos) << refused.error().to_string();
}

TEST(ResponseHead, KnowsHowTheBodyEnds) {
  const auto framing = [](const std::string& head, bool to_head = false) {
    const auto parsed = parse_response_head(head, to_head);
    return parsed.ok() ? std::optional(parsed->framing) : std::nullopt;
  };
  EXPECT_EQ(framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), Framing::length);
  EXPECT_EQ(framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Framing::chunked);
  EXPECT_EQ(framing("HTTP/1.1 200 OK\r\n\r\n"), Framing::until_close);
  EXPECT_EQ(framing("HTTP/1.1 204 No Content\r\n\r\n"), Framing::none);
  EXPECT_EQ(framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true), Framing::none);
  EXPECT_EQ(framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"), std::nullopt);
}

}  // namespace
}  // namespace kvferry::http
