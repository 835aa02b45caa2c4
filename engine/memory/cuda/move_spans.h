#pragma once

// The kernel that gathers scattered blocks into staging memory, or spreads them from it. The same text is compiled by
// nvcc for the device and by the C++ compiler for the tests' fake driver.

#if defined(__CUDACC__)
#define KVF_ON_DEVICE __device__ inline
#else
#define KVF_ON_DEVICE inline
#endif

namespace kvferry::cuda {

// One run of bytes. Addresses are the device's: with unified addressing those of pinned memory are the host's too.
struct MoveSpan {
  unsigned long long from;
  unsigned long long to;
  unsigned long long length;
};

inline constexpr unsigned kMoveThreads = 256;  // of a block
inline constexpr unsigned kMoveBlocks = 128;   // at most; each takes every kMoveBlocks-th span
inline constexpr char kMoveFunction[] = "kvferry_move_spans";

struct alignas(16) Word16 {
  unsigned long long halves[2];
};

template <class Word>
KVF_ON_DEVICE void move_words(const MoveSpan& span, unsigned thread, unsigned threads) {
  const Word* from = reinterpret_cast<const Word*>(span.from);
  Word* to = reinterpret_cast<Word*>(span.to);
  for (unsigned long long i = thread; i < span.length / sizeof(Word); i += threads) to[i] = from[i];
}

// What one thread does of one span. Words of 16 bytes where both ends and the length allow, which KV blocks do.
KVF_ON_DEVICE void move_share(const MoveSpan& span, unsigned thread, unsigned threads) {
  const unsigned long long odd = span.from | span.to | span.length;
  if (odd % sizeof(Word16) == 0)
    move_words<Word16>(span, thread, threads);
  else if (odd % sizeof(unsigned) == 0)
    move_words<unsigned>(span, thread, threads);
  else
    move_words<unsigned char>(span, thread, threads);
}

}  // namespace kvferry::cuda
