#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/memory/cuda/driver.h"
#include "engine/memory/cuda/move_spans.h"
#include "engine/memory/memory_kind.h"

namespace kvferry::cuda {

// How many small spans are brought together or spread, best first: by one kernel, by one call of the driver, or span by
// span. `automatic` takes the first that this driver and this build have.
enum class Gather : uint8_t { automatic, kernel, batch, single };
std::string_view to_string(Gather gather);
Result<Gather> parse_gather(std::string_view text);

// One GPU, through its primary context, as CUDA's runtime and PyTorch use it. Not thread-safe. Whoever calls must have
// entered context(), but for open() and destruction, which enter it themselves.
class Device {
 public:
  // `image` outlives the device; empty: there is no kernel.
  static Result<std::unique_ptr<Device>> open(std::shared_ptr<const Driver> driver, DeviceNumber number, Gather wanted,
                                              std::span<const unsigned char> image);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Context context() const { return context_; }
  DeviceNumber number() const { return number_; }
  Gather gather() const { return gather_; }
  // Why gather() is not what was wanted; empty when it is.
  const std::string& why_not() const { return why_not_; }

  // What NICs may do with its memory, asked once.
  struct Rdma {
    Status allowed;             // or why not
    bool needs_flush = false;   // what they have written is seen only after the driver has flushed it
    bool gives_dmabuf = false;  // of ranges of its memory
  };
  Result<const Rdma*> rdma();

  // The next of the streams for copies in that direction.
  Stream next_stream(CopyDirection direction);
  Result<CuEvent> take_event();
  void give_back(CuEvent event) { idle_events_.push_back(event); }
  // One for a copy that somebody waits for, with nothing else on it.
  Result<Stream> take_stream();
  void give_back(Stream stream) { idle_streams_.push_back(stream); }

  // Each puts work on the stream; an Error may leave part of it there.
  Status copy_each(CopyDirection direction, std::span<const CopySpan> spans, Stream stream) const;
  Status copy_batch(CopyDirection direction, std::span<const CopySpan> spans, Stream stream) const;
  // `table` is pinned memory for as many entries as there are spans, and stays so until the stream has passed.
  Status launch_move(CopyDirection direction, std::span<const CopySpan> spans, MoveSpan* table, Stream stream) const;

 private:
  Device(std::shared_ptr<const Driver> driver, DeviceNumber number) : driver_(std::move(driver)), number_(number) {}
  Status make_streams();
  Status load_kernel(std::span<const unsigned char> image);
  void choose(Gather wanted, std::span<const unsigned char> image);

  // Two in each direction: the second fills the gap between two copies of the first.
  static constexpr size_t kStreams = 2;

  const std::shared_ptr<const Driver> driver_;
  const DeviceNumber number_;
  Context context_ = nullptr;
  std::array<std::array<Stream, kStreams>, 2> streams_{};
  std::array<size_t, 2> next_{};
  std::vector<CuEvent> idle_events_;
  std::vector<Stream> idle_streams_;
  Module module_ = nullptr;
  Function move_ = nullptr;
  Gather gather_ = Gather::single;
  std::string why_not_;
  std::optional<Rdma> rdma_;
};

}  // namespace kvferry::cuda
