#pragma once

#include "common/result.h"

namespace kvferry::python {

// Raises kvferry.Error. REQUIRES: the GIL.
[[noreturn]] void raise(const Error& error);

inline void check(const Status& status) {
  if (!status.ok()) raise(status.error());
}

template <class T>
T take(Result<T> result) {
  if (!result.ok()) raise(result.error());
  return std::move(result).value();
}

}  // namespace kvferry::python
