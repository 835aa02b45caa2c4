#pragma once

#include <cstdint>
#include <cstring>

#include "engine/fabric/ofi/port.h"

namespace kvferry::ofi {

// What a connection begins with: the initiator's to the owner's door, the answer from the owner's end of it, and the
// first that takes the way back there.
struct Letter {
  static constexpr char kMagic[8] = {'k', 'v', 'f', '-', 'o', 'f', 'i', '1'};
  enum class Kind : uint32_t { hello = 1, welcome = 2, refusal = 3, thanks = 4 };

  char magic[8];
  Kind kind;
  uint32_t name_size;
  uint64_t client;            // as both sides' engines know the initiator
  uint64_t number;            // of this connection; an answer has its hello's
  uint8_t name[Name::kMost];  // the writer's end of it

  static bool make(Letter& out, Kind kind, uint64_t client, uint64_t number, const Name& name) {
    const auto& bytes = name.bytes();
    if (bytes.empty() || bytes.size() > sizeof out.name) return false;
    out = {};
    std::memcpy(out.magic, kMagic, sizeof kMagic);
    out.kind = kind;
    out.client = client;
    out.number = number;
    out.name_size = static_cast<uint32_t>(bytes.size());
    std::memcpy(out.name, bytes.data(), bytes.size());
    return true;
  }
  bool is_sound() const {
    return std::memcmp(magic, kMagic, sizeof magic) == 0 && name_size > 0 && name_size <= sizeof name;
  }
  Name writer() const { return Name({name, name + name_size}); }
};

// A letter's place in memory that the provider may use, and the request that sends or receives it.
struct Mailbox {
  Letter letter{};
  Request request;
  Handle<fid_mr> registration;

  int32_t prepare(kvf_fabric& fabric, Request::Kind kind, kvf_text why);
};

// Who waits for what wakes nobody: a connection that a provider makes by and by.
class Tended {
 public:
  virtual ~Tended() = default;
  // False: nothing is waited for any more.
  virtual bool tend() = 0;
};

}  // namespace kvferry::ofi
