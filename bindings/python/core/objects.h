#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bindings/python/core/memory.h"
#include "common/fd.h"
#include "engine/engine.h"
#include "engine/parcel.h"

// What Python's objects hold. All are used with the GIL, and let go of it wherever they may block.

namespace kvferry::python {

// Calls `work` without the GIL.
template <class Work>
auto without_gil(Work&& work) {
  const nanobind::gil_scoped_release released;
  return work();
}

class PyEngine {
 public:
  explicit PyEngine(EngineConfig config);
  ~PyEngine() { close(); }
  PyEngine(const PyEngine&) = delete;
  PyEngine& operator=(const PyEngine&) = delete;

  // The engine, kept alive by whoever uses it now; raises when it is closed.
  std::shared_ptr<Engine> get() const;
  Duration connect_timeout() const { return connect_timeout_; }
  void close();

 private:
  std::shared_ptr<Engine> engine_;
  Duration connect_timeout_;
};

// The parcels of an engine. They do not keep it: once it is closed, every call is refused.
class PyParcels {
 public:
  explicit PyParcels(const PyEngine& engine) : parcels_(*engine.get()) {}
  Parcels& get() const { return parcels_; }

 private:
  mutable Parcels parcels_;
};

// A region and the Python object whose memory it is. Memory that did not get quiet is never given back (I4).
class PyRegion {
 public:
  PyRegion(Region region, Memory memory) : region_(std::move(region)), memory_(std::move(memory)) {}
  ~PyRegion();
  PyRegion(PyRegion&&) = default;
  PyRegion& operator=(PyRegion&&) = delete;

  const RegionInfo& info() const { return region_.info(); }
  void unregister(double patience);
  // All of them, in one go without the GIL; `patience` is for them together. Raises what the first that failed did.
  static void unregister_all(const std::vector<PyRegion*>& regions, double patience);

 private:
  // With the GIL: what became of the region decides over its memory.
  void settle(const Status& status);
  Region region_;
  Memory memory_;
};

// Ends of transfers and of reads of parcels for one event loop. Only those that it was given are told, so that nothing
// piles up. Their callbacks hold its state.
class CompletionQueue {
 public:
  CompletionQueue();
  int fd() const { return state_->event.fd(); }
  template <class Awaited>
  void add(const Awaited& awaited) {
    awaited.on_done([state = state_, id = awaited.id()](const auto&) { state->end(id); });
  }
  // The ids of those that have ended since the last call.
  std::vector<uint64_t> take();

 private:
  struct State {
    explicit State(EventFd descriptor) : event(std::move(descriptor)) {}
    void end(uint64_t id);
    EventFd event;
    std::mutex mutex;
    std::vector<uint64_t> ended;  // GUARDED_BY(mutex)
  };
  std::shared_ptr<State> state_;
};

// From Python's seconds; an absent one is 0, which asks for the engine's default.
Duration to_duration(std::optional<double> seconds);

}  // namespace kvferry::python
