#include "engine/memory/cuda/move_spans.h"

extern "C" __global__ void kvferry_move_spans(const kvferry::cuda::MoveSpan* table, unsigned count) {
  for (unsigned i = blockIdx.x; i < count; i += gridDim.x)
    kvferry::cuda::move_share(table[i], threadIdx.x, blockDim.x);
}
