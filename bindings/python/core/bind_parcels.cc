#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/core/bind.h"
#include "bindings/python/core/errors.h"
#include "bindings/python/core/integers.h"
#include "bindings/python/core/objects.h"
#include "bindings/python/core/waiting.h"
#include "engine/parcel.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): holds "name"_a alone

namespace kvferry::python {
namespace {

// One list of block ids for each KV group.
std::vector<BlockList> to_blocks(nb::handle given) {
  std::vector<BlockList> blocks;
  for (const nb::handle group : given) {
    BlockList& list = blocks.emplace_back();
    for (const uint64_t id : integers(group, "block ids")) {
      if (id > kNoBlock) throw nb::value_error("block ids must be below 2**32");
      list.ids.push_back(static_cast<uint32_t>(id));
    }
  }
  return blocks;
}

void publish(const PyParcels& self, std::string transfer_id, nb::handle blocks, uint64_t tokens,
             std::string fingerprint, double lease, bool digest, uint64_t event) {
  ParcelSpec spec{
      std::move(transfer_id), to_blocks(blocks), tokens, std::move(fingerprint), to_duration(lease), digest, event};
  Parcels& parcels = self.get();
  check(without_gil([&] { return parcels.publish(std::move(spec)); }));
}

ParcelReading read(const PyParcels& self, std::string transfer_id, std::vector<PeerRef> owners, nb::handle blocks,
                   std::string fingerprint, std::string group, std::string expected_instance, uint32_t first_token,
                   uint32_t end_token, bool more, double timeout, uint64_t event) {
  ParcelReadRequest request;
  request.transfer_id = std::move(transfer_id);
  request.expected_instance_id = std::move(expected_instance);
  request.owners = std::move(owners);
  request.group_instance_id = std::move(group);
  request.fingerprint = std::move(fingerprint);
  request.blocks = to_blocks(blocks);
  request.first_token = first_token;
  request.end_token = end_token;
  request.more = more;
  request.timeout = to_duration(timeout);
  request.event = event;
  Parcels& parcels = self.get();
  return take(without_gil([&] { return parcels.read(std::move(request)); }));
}

nb::list to_released(const std::vector<ParcelReleased>& released) {
  nb::list out;
  if (released.empty()) return out;
  const nb::object type = nb::module_::import_("kvferry.types").attr("ReleasedParcel");
  for (const ParcelReleased& one : released) out.append(type(one.transfer_id, std::string(to_string(one.why))));
  return out;
}

void bind_outcome(nb::module_& module) {
  nb::class_<ParcelReadOutcome>(
      module, "ParcelOutcome",
      "How the read of a parcel ended. The blocks hold the parcel if and only if it is ok; in "
      "every other case they must not be used. They are quiet in all of them.")
      .def_prop_ro("ok", [](const ParcelReadOutcome& self) { return self.state == ReadState::accepted; })
      .def_prop_ro(
          "state", [](const ParcelReadOutcome& self) { return std::string(to_string(self.state)); },
          "accepted, stale, gone, conflict, failed or cancelled.")
      .def_prop_ro("error",
                   [](const ParcelReadOutcome& self) {
                     return self.status.ok() ? std::string() : self.status.error().to_string();
                   })
      .def_ro("bytes", &ParcelReadOutcome::bytes)
      .def_ro("tokens", &ParcelReadOutcome::tokens)
      .def_ro("fabric", &ParcelReadOutcome::fabric)
      .def("__bool__", [](const ParcelReadOutcome& self) { return self.state == ReadState::accepted; })
      .def("__repr__", [](const ParcelReadOutcome& self) {
        return fmt::format("<kvferry.ParcelOutcome {}: {} bytes over {}>", to_string(self.state), self.bytes,
                           self.fabric.empty() ? "nothing" : self.fabric);
      });
}

void bind_reading(nb::module_& module) {
  nb::class_<ParcelReading>(
      module, "ParcelReading",
      "A read of a parcel: wait() for it, poll() it, or await it in asyncio. Dropping it does not "
      "cancel it; cancelling a task that awaits it does.")
      .def_prop_ro("id", &ParcelReading::id)
      .def("done", &ParcelReading::done)
      .def("poll", &ParcelReading::poll, "The outcome if there is one.")
      .def(
          "wait",
          [](const ParcelReading& self, std::optional<double> timeout) {
            auto outcome = wait_in_slices(self, timeout);
            if (!outcome) raise(Error{ErrorCode::deadline_exceeded, "the read has not ended yet; it goes on"});
            check(outcome->status);
            return *outcome;
          },
          "timeout"_a = nb::none(),
          "Waits for the outcome and returns it; raises kvferry.Error when the parcel was not accepted. It comes by "
          "the "
          "read's own deadline; `timeout` (seconds) gives up waiting earlier.")
      .def(
          "wait_for",
          [](const ParcelReading& self, double timeout) {
            const Duration patience = to_duration(timeout);
            return without_gil([&] { return self.wait_for(patience); });
          },
          "timeout"_a, "The outcome, if it comes within `timeout` seconds.")
      .def(
          "cancel", [](const ParcelReading& self) { without_gil([&] { self.cancel(); }); },
          "When it returns, the blocks are quiet and the outcome is there.")
      .def(
          "__await__",
          [](nb::object self) {
            return nb::module_::import_("kvferry.awaiting").attr("wait")(self).attr("__await__")();
          },
          nb::sig("def __await__(self) -> collections.abc.Generator[object, None, ParcelOutcome]"),
          "The outcome; raises kvferry.Error when the parcel was not accepted.");
  nb::class_<ParcelStatus>(module, "ParcelStatus", "What an owner knows of one of its parcels.")
      .def_prop_ro("state", [](const ParcelStatus& self) { return std::string(self.state); })
      .def_prop_ro("age", [](const ParcelStatus& self) { return static_cast<double>(self.age.count()) * 1e-9; })
      .def_ro("readers", &ParcelStatus::readers, "Claims that live.");
}

void bind_owner(nb::class_<PyParcels>& parcels) {
  parcels
      .def(
          "announce",
          [](const PyParcels& self, const std::string& transfer_id, double lease) {
            Parcels& used = self.get();
            const Duration length = to_duration(lease);
            check(without_gil([&] { return used.announce(transfer_id, length); }));
          },
          "transfer_id"_a, "lease"_a = 480.0, "It will be published: claims for it wait.")
      .def(
          "withdraw",
          [](const PyParcels& self, const std::string& transfer_id) {
            Parcels& used = self.get();
            without_gil([&] { used.withdraw(transfer_id); });
          },
          "transfer_id"_a, "It will not come after all: claims that wait are told so.")
      .def("publish", &publish, "transfer_id"_a, "blocks"_a, nb::kw_only(), "tokens"_a, "fingerprint"_a = "",
           "lease"_a = 480.0, "digest"_a = false, "event"_a = 0,
           nb::sig("def publish(self, transfer_id: str, blocks: collections.abc.Sequence[kvferry.types.Integers], *, "
                   "tokens: int, fingerprint: str = \"\", lease: float = 480.0, digest: bool = False, event: int = 0) "
                   "-> None"),
           "`blocks`: for each KV group, the ids of the blocks that hold the tokens from 0 on; NO_BLOCK where a window "
           "has dropped one. From here until take_released() names it, the blocks belong to the parcel; when this "
           "raises they never did. `event`: of the GPU (a cudaEvent_t), after which the blocks are written.")
      .def(
          "release",
          [](const PyParcels& self, const std::string& transfer_id, bool force) {
            Parcels& used = self.get();
            return without_gil([&] { return used.release(transfer_id, force); });
          },
          "transfer_id"_a, "force"_a = false,
          "Idempotent. Forced: the blocks are free when this returns. Not forced: after the last live claim; then the "
          "answer is False.")
      .def(
          "status",
          [](const PyParcels& self, const std::string& transfer_id) {
            Parcels& used = self.get();
            return without_gil([&] { return used.status(transfer_id); });
          },
          "transfer_id"_a)
      .def(
          "take_released", [](const PyParcels& self) { return to_released(self.get().take_released()); },
          nb::sig("def take_released(self) -> list[kvferry.types.ReleasedParcel]"),
          "The parcels whose blocks belong to the caller again; each once.");
}

void bind_reader(nb::class_<PyParcels>& parcels) {
  parcels
      .def(
          "read", &read, "transfer_id"_a, "owners"_a, "blocks"_a, nb::kw_only(), "fingerprint"_a = "", "group"_a = "",
          "expected_instance"_a = "", "first_token"_a = 0, "end_token"_a = 0, "more"_a = false, "timeout"_a = 30.0,
          "event"_a = 0,
          nb::sig("def read(self, transfer_id: str, owners: collections.abc.Sequence[Peer], blocks: "
                  "collections.abc.Sequence[kvferry.types.Integers], *, fingerprint: str = \"\", group: str = \"\", "
                  "expected_instance: str = \"\", first_token: int = 0, end_token: int = 0, more: bool = False, "
                  "timeout: float = 30.0, event: int = 0) -> ParcelReading"),
          "Starts to read a parcel into blocks of this engine's cache. `owners`: every rank that owners_to_settle "
          "names; `group`: this reader's instance; `first_token`: what lies before is here already; `end_token` 0: all "
          "that the parcel covers; `more`: this instance will claim the parcel again; `event`: of the GPU (a "
          "cudaEvent_t), "
          "after which nothing else uses the blocks: the read begins then.")
      .def(
          "release_at",
          [](const PyParcels& self, const PeerRef& owner, const std::string& transfer_id, bool force, double timeout) {
            Parcels& used = self.get();
            const Duration patience = to_duration(timeout);
            without_gil([&] { used.release_at(owner, transfer_id, force, patience); });
          },
          "owner"_a, "transfer_id"_a, "force"_a = false, "timeout"_a = 30.0,
          "Tells an owner that nobody here will read the parcel. Does not wait.");
}

}  // namespace

void bind_parcels(nb::module_& module) {
  bind_outcome(module);
  bind_reading(module);
  nb::class_<PyParcels> parcels(
      module, "Parcels", nb::is_weak_referenceable(),
      "The parcels of one engine: KV that is right or refused, and never pinned. Thread-safe.");
  parcels.def(nb::init<const PyEngine&>(), "engine"_a)
      .def(
          "set_cache",
          [](const PyParcels& self, std::string instance_id, KvLayout layout) {
            Parcels& used = self.get();
            check(without_gil([&] { return used.set_cache(std::move(instance_id), std::move(layout)); }));
          },
          "instance_id"_a, "layout"_a,
          "How this rank's KV cache lies in regions of the engine. Once, before the rest.");
  bind_owner(parcels);
  bind_reader(parcels);
}

}  // namespace kvferry::python
