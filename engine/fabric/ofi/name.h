#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/fabric/plugin_kit.h"

namespace kvferry::ofi {

// An endpoint's name, as libfabric has it: a socket's address, or bytes that only its provider understands.
class Name {
 public:
  static constexpr size_t kMost = 72;  // bytes; as text twice as many, which the engine takes

  Name() = default;
  explicit Name(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}
  // What to_text() made of it; empty where that is not so.
  static Name parse(const std::string& text);
  std::string to_text() const;

  const std::vector<uint8_t>& bytes() const { return bytes_; }
  bool empty() const { return bytes_.empty(); }
  bool is_socket() const;
  // What a provider of shared memory begins the names of this process's endpoints with.
  static std::string of_this_process();
  // Removes what processes that were killed have left of theirs in shared memory, as far as this one can know of them:
  // those of its own namespace of process numbers.
  static void remove_leftovers();
  // Of shared memory: a text that ends with a zero.
  bool is_shared_memory() const;
  bool is_of_this_process() const;
  // A socket that listens at every address of its host.
  bool is_wildcard() const;
  // The same port at the host of `other`.
  Name at_host_of(const Name& other) const;
  // The same port at this host's address from which `peer` is reached.
  Name as_seen_by(const Name& peer) const;

 private:
  std::vector<uint8_t> bytes_;
};

}  // namespace kvferry::ofi
