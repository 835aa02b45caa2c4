#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "engine/memory/region.h"

namespace kvferry {

enum class Operation : uint8_t { read = 0, write = 1 };

// One piece of a transfer: `length` bytes between this process's memory, inside a registered region, and a span of the
// peer's region.
struct Pair {
  std::byte* local = nullptr;
  RegionId region = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
};

// A message that the peer's application takes from Engine::notifications(). Sent with a transfer it arrives after the
// transfer's data is visible there (I8).
struct Notification {
  std::string name;
  std::string payload;
};

constexpr size_t kMaxNotificationBytes = size_t{512} << 10;  // name and payload: fits a session frame

struct ReceivedNotification {
  std::string from;  // engine id of the sender
  Notification notification;
};

// Whether the far side of a write may still change (I4). `unknown`: the peer was stopped or cut off when the transfer
// ended; a read is always quiet.
enum class RemoteQuiet : uint8_t { quiet, unknown };

// How a transfer ended: once, by its deadline (I3).
struct Outcome {
  Status status;
  RemoteQuiet remote = RemoteQuiet::quiet;
  uint64_t bytes_done = 0;
  uint64_t spans_done = 0;
  std::string fabric;
};

}  // namespace kvferry
