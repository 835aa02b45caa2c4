#pragma once

#include <cstdint>
#include <string_view>

namespace kvferry {

// The life of a parcel and of a claim, as tables (proto/control.proto has the same in its comments). Pure.

enum class ParcelState : uint8_t { none, announced, published, claimed, released, expired, aborted };
enum class ParcelEvent : uint8_t { announce, publish, withdraw, claim, all_settled, reader_failed, release, expire };

// The next state, or the same one when the event means nothing to it.
ParcelState transition(ParcelState from, ParcelEvent event);
bool is_final(ParcelState state);
std::string_view to_string(ParcelState state);

// A claim as its owner sees it.
enum class ClaimState : uint8_t { waiting, granted, settled, failed };
enum class ClaimEvent : uint8_t { grant, settle, fail };
ClaimState transition(ClaimState from, ClaimEvent event);

// A claim as its reader sees it.
enum class ReadState : uint8_t { waiting, reading, settling, accepted, stale, gone, conflict, failed, cancelled };
enum class ReadEvent : uint8_t {
  ticket,
  read_done,
  verdict_valid,
  verdict_stale,
  answer_gone,
  answer_conflict,
  fail,
  cancel
};
ReadState transition(ReadState from, ReadEvent event);
bool is_final(ReadState state);
std::string_view to_string(ReadState state);

}  // namespace kvferry
