#include "proxy/prelude.h"

#include <gtest/gtest.h>

namespace kvferry::proxy {
namespace {

using Heard = Prelude::Heard;

const std::string kPrelude =
    "event: response.created\ndata: {\"response\":{\"instructions\":\"event: x\"},\"type\":\"response.created\"}\n\n"
    "event:response.queued\r\ndata: {}\r\n\r\n"
    ": a comment\n\n"
    "event: response.in_progress\ndata: {\"error\":null}\ndata: more\n\n";

TEST(Prelude, WhatComesBeforeTheEngineSaysNothingWhereverItIsCut) {
  const std::string next = "event: response.output_item.added\n";
  const std::string all = kPrelude + next;
  for (size_t cut = 0; cut <= all.size(); ++cut) {
    Prelude prelude;
    Heard heard = prelude.read(std::string_view(all).substr(0, cut));
    ASSERT_EQ(heard, cut < all.size() ? Heard::nothing : Heard::answer) << cut;
    if (heard == Heard::nothing) heard = prelude.read(std::string_view(all).substr(cut));
    ASSERT_EQ(heard, Heard::answer) << cut;
  }
}

TEST(Prelude, ByteAfterByte) {
  Prelude prelude;
  for (const char c : kPrelude + "event: response.failed") ASSERT_EQ(prelude.read({&c, 1}), Heard::nothing);
  EXPECT_EQ(prelude.read("\n"), Heard::failure);
}

TEST(Prelude, TellsAFailureFromAnAnswer) {
  const std::pair<std::string_view, Heard> cases[] = {
      {"event: error\n", Heard::failure},
      {"event: response.failed\r\n", Heard::failure},
      {"data: {\"error\":{}}\n", Heard::failure},
      {"data: {\"choices\":[]}\n", Heard::answer},
      {"data: [DONE]\n", Heard::answer},
      {"event: response.created_by_somebody_else\n", Heard::answer},
      {"event: response.in_progress.of.a.name.that.is.longer.than.all.that.is.kept.of.a.line\n", Heard::answer},
      {"event:\n", Heard::answer},
      {"id: 7\nretry: 10\n\n", Heard::nothing},
  };
  for (const auto& [text, heard] : cases) {
    Prelude prelude;
    ASSERT_EQ(prelude.read(kPrelude), Heard::nothing);
    EXPECT_EQ(prelude.read(text), heard) << text;
  }
}

TEST(Prelude, ALongLineIsReadInPieces) {
  Prelude prelude;
  ASSERT_EQ(prelude.read("event: response.created\ndata: "), Heard::nothing);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(prelude.read("event: response.completed "), Heard::nothing);
  ASSERT_EQ(prelude.read("\n\n"), Heard::nothing);
  EXPECT_EQ(prelude.read("event: response.completed\n"), Heard::answer);
}

}  // namespace
}  // namespace kvferry::proxy
