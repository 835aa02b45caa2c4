#pragma once

#include <functional>

#include "common/result.h"

namespace kvferry {

// A one-sided read that goes piece by piece, because something is to be done with each. On loop only.
class PiecedRead {
 public:
  // `digest`: of the bytes as they came, where it was asked for.
  using Done = std::function<void(Status, uint64_t digest)>;
  virtual ~PiecedRead() = default;

  virtual void start() = 0;
  // I4: nothing lands any more when this returns, and `done` is not called. `path_stands`: the path that it was given
  // is still there. A whole job of which a piece is loose is so, too (Job::loose).
  virtual void stop(bool path_stands) = 0;
};

}  // namespace kvferry
