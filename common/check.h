#pragma once

#include "common/api.h"

namespace kvferry {

[[noreturn]] KVFERRY_API void check_failed(const char* expression, const char* file, int line);

}  // namespace kvferry

// A broken invariant of this program, never bad input: prints the place and aborts, in every build type.
#define KVF_CHECK(expression) \
  (static_cast<bool>(expression) ? static_cast<void>(0) : ::kvferry::check_failed(#expression, __FILE__, __LINE__))
