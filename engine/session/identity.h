#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"
#include "engine/config.h"
#include "engine/fabric/local/host.h"
#include "engine/io/address.h"

namespace kvferry {

constexpr uint32_t kProtocolMin = 1;
constexpr uint32_t kProtocolMax = 1;

// A fabric of a plug-in that this engine has open.
struct FabricSelf {
  std::string name;
  std::string address;  // where it listens; an any-address means "the host that you reach me by"
  uint64_t client = 0;  // how it introduces itself when it connects
};

// What an engine says about itself in hello and welcome, and how it judges the other side.
struct Identity {
  std::string engine_id;
  uint64_t incarnation = 0;
  AuthMode auth = AuthMode::open;
  HostIdentity host;
  std::vector<std::string> features;
  Duration heartbeat = std::chrono::seconds(1);
  Duration patience = std::chrono::seconds(3);  // without a sign of life
  Address address;                              // where this engine listens
  std::vector<FabricSelf> fabrics;

  // Whether dialling `address` means this very engine.
  bool is_own(const Address& dialled) const;
};

// Features that this build understands.
std::vector<std::string> known_features();

}  // namespace kvferry
