#include <cstdlib>
#include <cstring>

#include "common/text.h"
#include "engine/memory/memory_kind.h"

namespace kvferry {
namespace {

class HostMemory final : public MemoryOps {
 public:
  MemoryKind kind() const override { return MemoryKind::host; }

  Status check(const void* base, size_t length) override {
    if (base == nullptr || length == 0)
      return Error{ErrorCode::invalid_argument, "memory to register must not be empty"};
    return {};
  }

  bool host_addressable() const override { return true; }

  std::byte* allocate_staging(size_t length) override { return static_cast<std::byte*>(std::malloc(length)); }
  void free_staging(std::byte* staging, size_t) override { std::free(staging); }

  Result<CopyId> start_copy(CopyDirection direction, std::span<const CopySpan> spans) override {
    for (const CopySpan& span : spans) {
      if (direction == CopyDirection::to_host)
        std::memcpy(span.host, span.device, span.length);
      else
        std::memcpy(span.device, span.host, span.length);
    }
    return CopyId{1};
  }

  Result<bool> copy_done(CopyId) override { return true; }

  Result<bool> event_done(EventId) override { return Error{ErrorCode::invalid_argument, "host memory has no events"}; }

  std::string describe() const override { return "ready"; }
};

}  // namespace

std::string_view to_string(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::host:
      return "host";
    case MemoryKind::cuda:
      return "cuda";
    case MemoryKind::fake:
      return "fake";
  }
  return "unknown";
}

void MemoryKinds::add(std::shared_ptr<MemoryOps> ops) {
  const auto index = static_cast<size_t>(ops->kind());
  by_kind_[index] = std::move(ops);
}

MemoryKind MemoryKinds::kind_of(const void* address) const {
  for (const auto& ops : by_kind_)
    if (ops != nullptr && ops->owns(address)) return ops->kind();
  return MemoryKind::host;
}

Result<MemoryOps*> MemoryKinds::find(MemoryKind kind) const {
  const auto index = static_cast<size_t>(kind);
  if (index >= kMemoryKinds || by_kind_[index] == nullptr)
    return Error{ErrorCode::unsupported,
                 "memory kind \"" + std::string(to_string(kind)) + "\" is not available in this engine"};
  return by_kind_[index].get();
}

std::string MemoryKinds::describe(const std::function<std::string(MemoryKind)>& more) const {
  std::string out;
  for (const auto& ops : by_kind_)
    if (ops != nullptr)
      out += (out.empty() ? "{" : ",") + json_quote(to_string(ops->kind())) + ":" +
             json_quote(ops->describe() + more(ops->kind()));
  return out.empty() ? "{}" : out + "}";
}

std::shared_ptr<MemoryOps> make_host_memory() {
  return std::make_shared<HostMemory>();
}

}  // namespace kvferry
