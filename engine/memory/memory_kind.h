#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "engine/io/topology.h"

namespace kvferry {

// The numbers go over the wire (proto/control.proto, Region.kind).
enum class MemoryKind : uint8_t { host = 0, cuda = 1, fake = 2 };

constexpr size_t kMemoryKinds = 3;

std::string_view to_string(MemoryKind kind);

enum class CopyDirection : uint8_t { to_host, to_device };

struct CopySpan {
  std::byte* device;
  std::byte* host;
  size_t length;
};

// A copy in flight on the kind's own stream; 0 is never one.
using CopyId = uint64_t;

// An event of the kind's own (for a GPU, the driver's): everything that was given to the device before it was recorded.
// 0 is none.
using EventId = uint64_t;

// Between two places of one kind, neither of which is the host's.
struct DirectCopy {
  std::byte* to;
  const std::byte* from;
  size_t length;
};

// What a kind can do whose memory the processes of one host can map into each other. Thread-safe.
class SharedMemoryOps {
 public:
  virtual ~SharedMemoryOps() = default;

  // What another process needs to map a registered range; empty where that is not to be had.
  virtual std::string share(const void* base, size_t length) = 0;
  // The first byte of the range of `length` bytes that a key of another process stands for. Memory that several keys
  // share is mapped once, and unmapped with the last pointer, which must go before these operations do. The key is the
  // peer's word: nothing beyond what it really shares is ever reached.
  virtual Result<std::shared_ptr<std::byte>> map(std::string_view key, uint64_t length) = 0;
  // Copies, and returns when all has landed. Not for a progress thread.
  virtual Status copy(std::span<const DirectCopy> copies) = 0;
};

// A registered range as the library of a fabric has to know it.
struct FabricRange {
  void* base = nullptr;
  uint64_t length = 0;
  MemoryKind kind = MemoryKind::host;
  int device = -1;  // the kind's number for the device that it is on
  // The pages around the range, where the kind's driver gives out descriptors for them (dma_buf); -1: it does not.
  int dmabuf = -1;
  uint64_t dmabuf_offset = 0;  // of the range in them
};

// What a kind can do that is not the CPU's memory, and that devices of fabrics (NICs) reach by themselves. Thread-safe.
class FabricMemoryOps {
 public:
  virtual ~FabricMemoryOps() = default;

  // Runs `use` with a checked range, in the device's own context; the descriptor in it is closed afterwards. An Error
  // of its own says why no such device may touch the memory. Otherwise what `use` returned.
  virtual Status expose(void* base, uint64_t length, const std::function<Status(const FabricRange&)>& use) = 0;
  // I8: what such devices have written to the memory at those addresses, and answered for, is visible to whoever reads
  // it when this returns, and nothing of it lands later (I4). A wait of microseconds where the device needs it.
  virtual Status settle_writes(std::span<const void* const> addresses) = 0;
  // Of the device whose memory is at that address: the nearest NIC is chosen by it.
  virtual Place place_of(const void* address, const Topology& topology) = 0;
};

// What the engine may do with one kind of memory. Device addresses are opaque outside of this table: everything that
// is not host_addressable() passes through staging memory. Thread-safe.
class MemoryOps {
 public:
  virtual ~MemoryOps() = default;

  virtual MemoryKind kind() const = 0;
  // Whether memory of this kind is there, and not the host's. Loads and initialises nothing.
  virtual bool owns(const void*) const { return false; }
  // Before memory is registered. An empty range, or one that is not of this kind, is refused with the reason, and so is
  // all of it where the kind is not viable. A range that is taken is also prepared, where the kind needs that.
  virtual Status check(const void* base, size_t length) = 0;
  // True: the CPU and the kernel may touch it (readv, process_vm_readv).
  virtual bool host_addressable() const = 0;

  // Host memory that copies of this kind are fast from and to (pinned, for a GPU). Null when there is none left.
  virtual std::byte* allocate_staging(size_t length) = 0;
  virtual void free_staging(std::byte* staging, size_t length) = 0;

  // Starts copies of all spans as one unit; none has landed before copy_done() said so.
  virtual Result<CopyId> start_copy(CopyDirection direction, std::span<const CopySpan> spans) = 0;
  // True once; then the id is forgotten. An Error ends the copy too: its bytes are undefined but quiet.
  virtual Result<bool> copy_done(CopyId copy) = 0;

  // Whether all work before the event is done. An Error: the device has failed, or it is no event of this kind. The
  // event's maker keeps it as long as somebody may ask.
  virtual Result<bool> event_done(EventId event) = 0;

  // Null: other processes cannot map this kind's memory, or reach it without that.
  virtual SharedMemoryOps* sharing() { return nullptr; }
  // Null: no device of a fabric reaches this kind's memory, or all of them reach it as they do the CPU's.
  virtual FabricMemoryOps* for_fabrics() { return nullptr; }

  // For a person: whether the kind can be used here and how, or why not.
  virtual std::string describe() const = 0;
};

// The kinds an engine knows; absent ones say why.
class MemoryKinds {
 public:
  void add(std::shared_ptr<MemoryOps> ops);
  // An Error when the kind is not viable here.
  Result<MemoryOps*> find(MemoryKind kind) const;
  // What memory is at the address: the host's where no other kind owns it.
  MemoryKind kind_of(const void* address) const;
  // JSON: what each kind says of itself, and behind it what `more` says of it.
  std::string describe(const std::function<std::string(MemoryKind)>& more) const;

 private:
  std::shared_ptr<MemoryOps> by_kind_[kMemoryKinds];
};

std::shared_ptr<MemoryOps> make_host_memory();

}  // namespace kvferry
