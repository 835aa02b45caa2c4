#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "common/api.h"
#include "common/result.h"

namespace kvferry {

// Bytes that nobody else is to see: wiped when they go, never printed. Moves leave nothing behind.
class KVFERRY_API Secret {
 public:
  Secret() = default;
  explicit Secret(std::string_view bytes) : bytes_(bytes) {}
  Secret(Secret&& other) noexcept { swap(other); }
  Secret& operator=(Secret&& other) noexcept {
    wipe();
    swap(other);
    return *this;
  }
  ~Secret() { wipe(); }

  std::string_view view() const { return bytes_; }
  // Room for `count` bytes, for whoever fills them in.
  char* resize(size_t count);

 private:
  void swap(Secret& other) { bytes_.swap(other.bytes_); }
  void wipe();
  std::string bytes_;
};

// The content of a file of keys, at most 64 KiB of it. A file that its group or others may read or write is refused,
// and so is one that belongs to neither this user nor root.
KVFERRY_API Result<Secret> read_secret_file(const std::string& path);

// A secret given on a command line or in a config: "@path" reads it from such a file, without the end of its line.
KVFERRY_API Result<std::string> read_secret(std::string_view text);

}  // namespace kvferry
