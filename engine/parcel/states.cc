#include "engine/parcel/states.h"

namespace kvferry {
namespace {

template <class State, class Event>
struct Row {
  State from;
  Event event;
  State to;
};

template <class State, class Event, size_t kRows>
State look_up(const Row<State, Event> (&table)[kRows], State from, Event event) {
  for (const auto& row : table)
    if (row.from == from && row.event == event) return row.to;
  return from;
}

}  // namespace

ParcelState transition(ParcelState from, ParcelEvent event) {
  using S = ParcelState;
  using E = ParcelEvent;
  static constexpr Row<S, E> kTable[] = {
      {S::none, E::announce, S::announced},       {S::none, E::publish, S::published},
      {S::none, E::release, S::released},         {S::announced, E::publish, S::published},
      {S::announced, E::withdraw, S::released},   {S::announced, E::release, S::released},
      {S::announced, E::expire, S::expired},      {S::published, E::claim, S::claimed},
      {S::published, E::release, S::released},    {S::published, E::expire, S::expired},
      {S::claimed, E::claim, S::claimed},         {S::claimed, E::all_settled, S::released},
      {S::claimed, E::reader_failed, S::aborted}, {S::claimed, E::release, S::released},
      {S::claimed, E::expire, S::expired},
  };
  return look_up(kTable, from, event);
}

bool is_final(ParcelState state) {
  return state == ParcelState::released || state == ParcelState::expired || state == ParcelState::aborted;
}

std::string_view to_string(ParcelState state) {
  switch (state) {
    case ParcelState::none:
      return "none";
    case ParcelState::announced:
      return "announced";
    case ParcelState::published:
      return "published";
    case ParcelState::claimed:
      return "claimed";
    case ParcelState::released:
      return "released";
    case ParcelState::expired:
      return "expired";
    case ParcelState::aborted:
      return "aborted";
  }
  return "unknown";
}

ClaimState transition(ClaimState from, ClaimEvent event) {
  using S = ClaimState;
  using E = ClaimEvent;
  static constexpr Row<S, E> kTable[] = {
      {S::waiting, E::grant, S::granted},
      {S::waiting, E::fail, S::failed},
      {S::granted, E::settle, S::settled},
      {S::granted, E::fail, S::failed},
  };
  return look_up(kTable, from, event);
}

ReadState transition(ReadState from, ReadEvent event) {
  using S = ReadState;
  using E = ReadEvent;
  static constexpr Row<S, E> kTable[] = {
      {S::waiting, E::ticket, S::reading},
      {S::waiting, E::answer_gone, S::gone},
      {S::waiting, E::answer_conflict, S::conflict},
      {S::waiting, E::fail, S::failed},
      {S::waiting, E::cancel, S::cancelled},
      {S::reading, E::read_done, S::settling},
      {S::reading, E::verdict_stale, S::stale},
      {S::reading, E::answer_gone, S::gone},
      {S::reading, E::answer_conflict, S::conflict},
      {S::reading, E::fail, S::failed},
      {S::reading, E::cancel, S::cancelled},
      {S::settling, E::verdict_valid, S::accepted},
      {S::settling, E::verdict_stale, S::stale},
      {S::settling, E::answer_gone, S::gone},
      {S::settling, E::fail, S::failed},
      {S::settling, E::cancel, S::cancelled},
  };
  return look_up(kTable, from, event);
}

bool is_final(ReadState state) {
  return state >= ReadState::accepted;
}

std::string_view to_string(ReadState state) {
  switch (state) {
    case ReadState::waiting:
      return "waiting";
    case ReadState::reading:
      return "reading";
    case ReadState::settling:
      return "settling";
    case ReadState::accepted:
      return "accepted";
    case ReadState::stale:
      return "stale";
    case ReadState::gone:
      return "gone";
    case ReadState::conflict:
      return "conflict";
    case ReadState::failed:
      return "failed";
    case ReadState::cancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace kvferry
