#include <gtest/gtest.h>
#include <rdma/fabric.h>
#include <sys/uio.h>

// libfabric takes memory by its dma_buf from 1.20 on. Where its headers are older, what those of 1.20 say of it stands
// here, so that the lines which use it are compiled and run everywhere.
#if FI_MAJOR_VERSION == 1 && FI_MINOR_VERSION < 20
#define fi_mr_attr fi_mr_attr_without_dmabuf
#include <rdma/fi_domain.h>
#undef fi_mr_attr
#define FI_MR_DMABUF (1ULL << 40)
struct fi_mr_dmabuf {
  int fd;
  uint64_t offset;
  size_t len;
  void* base_addr;
};
struct fi_mr_attr {
  union {
    const iovec* mr_iov;
    const fi_mr_dmabuf* dmabuf;
  };
  size_t iov_count;
  uint64_t access;
  uint64_t offset;
  uint64_t requested_key;
  void* context;
  size_t auth_key_size;
  uint8_t* auth_key;
  fi_hmem_iface iface;
  union {
    uint64_t reserved;
    int cuda;
  } device;
};
#else
#include <rdma/fi_domain.h>
#endif

#include "engine/fabric/ofi/range.h"

namespace kvferry::ofi {
namespace {

char memory[1000];

kvf_range range_of(kvf_memory_kind kind) {
  kvf_range range{};
  range.base = memory + 100;
  range.length = 300;
  range.kind = kind;
  range.device = kind == KVF_CUDA ? 3 : -1;
  range.dmabuf = -1;
  return range;
}

TEST(OfiRange, OfTheHostIsAnAddressAndALength) {
  const RangeAttributes made(range_of(KVF_HOST), FI_REMOTE_READ, 77, kWithDmabuf);
  EXPECT_EQ(made.flags(), 0u);
  EXPECT_EQ(made.get()->access, FI_REMOTE_READ);
  EXPECT_EQ(made.get()->requested_key, 77u);
  EXPECT_EQ(made.get()->iface, FI_HMEM_SYSTEM);
  ASSERT_EQ(made.get()->iov_count, 1u);
  EXPECT_EQ(made.get()->mr_iov->iov_base, memory + 100);
  EXPECT_EQ(made.get()->mr_iov->iov_len, 300u);
}

TEST(OfiRange, OfAGpuWithoutADmaBufIsAnAddressOfThatGpu) {
  const RangeAttributes made(range_of(KVF_CUDA), FI_REMOTE_WRITE, 1, kWithDmabuf);
  EXPECT_EQ(made.flags(), 0u);
  EXPECT_EQ(made.get()->iface, FI_HMEM_CUDA);
  EXPECT_EQ(made.get()->device.cuda, 3);
  EXPECT_EQ(made.get()->mr_iov->iov_base, memory + 100);
}

// libfabric adds the offset to the address that the dma_buf begins at.
TEST(OfiRange, OfAGpuWithADmaBufIsThatAtItsOffset) {
  kvf_range range = range_of(KVF_CUDA);
  range.dmabuf = 42;
  range.dmabuf_offset = 64;
  const RangeAttributes made(range, FI_REMOTE_WRITE, 1, kWithDmabuf);
  EXPECT_EQ(made.flags(), FI_MR_DMABUF);
  EXPECT_EQ(made.get()->iface, FI_HMEM_CUDA);
  EXPECT_EQ(made.get()->device.cuda, 3);
  ASSERT_EQ(made.get()->iov_count, 1u);
  EXPECT_EQ(made.get()->dmabuf->fd, 42);
  EXPECT_EQ(made.get()->dmabuf->offset, 64u);
  EXPECT_EQ(made.get()->dmabuf->len, 300u);
  EXPECT_EQ(static_cast<char*>(made.get()->dmabuf->base_addr) + 64, memory + 100);
}

// An older interface would read the dma_buf as an address.
TEST(OfiRange, OfAGpuWithADmaBufIsAnAddressWhereTheInterfaceTakesNone) {
  kvf_range range = range_of(KVF_CUDA);
  range.dmabuf = 42;
  const RangeAttributes made(range, FI_REMOTE_WRITE, 1, kOldest);
  EXPECT_EQ(made.flags(), 0u);
  EXPECT_EQ(made.get()->mr_iov->iov_base, memory + 100);
}

TEST(OfiRange, TheInterfaceIsTheOldestThatDoesUnderTheLibraryThatIsThere) {
  EXPECT_EQ(wanted_interface(FI_VERSION(1, 17)), FI_VERSION(1, 17));
  EXPECT_EQ(wanted_interface(FI_VERSION(1, 19)), FI_VERSION(1, 17));
  EXPECT_EQ(wanted_interface(FI_VERSION(1, 20)), FI_VERSION(1, 20));
  EXPECT_EQ(wanted_interface(FI_VERSION(2, 6)), FI_VERSION(1, 20));
}

TEST(OfiRange, OfTheHostHasNoDmaBufWhateverIsSaid) {
  kvf_range range = range_of(KVF_HOST);
  range.dmabuf = 42;
  EXPECT_EQ(RangeAttributes(range, FI_REMOTE_READ, 1, kWithDmabuf).flags(), 0u);
}

}  // namespace
}  // namespace kvferry::ofi
