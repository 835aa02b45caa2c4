#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace kvferry {

void check_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "kvferry: invariant broken: %s (%s:%d)\n", expression, file, line);
  std::abort();
}

}  // namespace kvferry
