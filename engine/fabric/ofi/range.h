#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <sys/uio.h>

#include "engine/fabric/plugin_abi.h"

namespace kvferry::ofi {

constexpr uint32_t kOldest = FI_VERSION(1, 17);
constexpr uint32_t kWithDmabuf = FI_VERSION(1, 20);

// The interface to ask libfabric for. It takes memory by its dma_buf under kWithDmabuf and later ones, if these headers
// know that, too; under an older one it would read what stands for the dma_buf as an address.
inline uint32_t wanted_interface(uint32_t library) {
#ifdef FI_MR_DMABUF
  if (FI_VERSION_GE(library, kWithDmabuf)) return kWithDmabuf;
#endif
  static_cast<void>(library);
  return kOldest;
}

// A range as libfabric is told of it: memory of a GPU by its dma_buf, where there is one and `interface` takes that.
class RangeAttributes {
 public:
  RangeAttributes(const kvf_range& range, uint64_t access, uint64_t key, uint32_t interface)
      : vector_{range.base, range.length} {
    attributes_.mr_iov = &vector_;
    attributes_.iov_count = 1;
    attributes_.access = access;
    attributes_.requested_key = key;
    if (range.kind != KVF_CUDA) return;
    attributes_.iface = FI_HMEM_CUDA;
    attributes_.device.cuda = range.device;
    if (range.dmabuf < 0 || !FI_VERSION_GE(interface, kWithDmabuf)) return;
#ifdef FI_MR_DMABUF
    flags_ = FI_MR_DMABUF;
    dmabuf_.fd = range.dmabuf;
    dmabuf_.offset = range.dmabuf_offset;
    dmabuf_.len = range.length;
    dmabuf_.base_addr = static_cast<char*>(range.base) - range.dmabuf_offset;
    attributes_.dmabuf = &dmabuf_;
#endif
  }
  RangeAttributes(const RangeAttributes&) = delete;
  RangeAttributes& operator=(const RangeAttributes&) = delete;

  const fi_mr_attr* get() const {
    return &attributes_;
  }
  uint64_t flags() const {
    return flags_;
  }

 private:
  iovec vector_;
#ifdef FI_MR_DMABUF
  fi_mr_dmabuf dmabuf_{};
#endif
  fi_mr_attr attributes_{};
  uint64_t flags_ = 0;
};

}  // namespace kvferry::ofi
