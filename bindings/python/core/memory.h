#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "engine/memory/memory_kind.h"

namespace kvferry::python {

// One contiguous piece of memory that a Python object owns, kept alive and in place as long as this lives. Made and
// destroyed with the GIL.
struct Memory {
  std::byte* base = nullptr;
  uint64_t length = 0;
  MemoryKind kind = MemoryKind::host;
  nanobind::object owner;  // a memoryview or a DLPack capsule's holder
};

// The memory of anything with the buffer protocol or __dlpack__: numpy arrays, torch tensors, bytearray, memoryview.
// Raises TypeError for other objects, ValueError for memory that is read-only or not contiguous.
Memory memory_of(nanobind::handle object);

}  // namespace kvferry::python
