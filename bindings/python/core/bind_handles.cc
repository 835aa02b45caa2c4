#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/core/bind.h"
#include "bindings/python/core/errors.h"
#include "bindings/python/core/objects.h"
#include "bindings/python/core/waiting.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): holds "name"_a alone

namespace kvferry::python {
namespace {

nb::object span_of(const RegionInfo& info, uint64_t offset, std::optional<uint64_t> length) {
  if (offset > info.length || length.value_or(0) > info.length - offset)
    throw nb::value_error("the span is not inside of the region");
  return nb::module_::import_("kvferry.types").attr("Span")(info.id, offset, length.value_or(info.length - offset));
}

std::string describe_region(const char* kind, const RegionInfo& info) {
  return fmt::format("<kvferry.{} {}: {} bytes at 0x{:x}>", kind, info.id, info.length, info.base);
}

constexpr const char* kSpanSignature =
    "def span(self, offset: int = 0, length: int | None = None) -> kvferry.types.Span";

void bind_outcome(nb::module_& module) {
  nb::class_<Outcome>(module, "Outcome", "How a transfer ended.")
      .def_prop_ro("ok", [](const Outcome& self) { return self.status.ok(); })
      .def_prop_ro(
          "code",
          [](const Outcome& self) {
            return self.status.ok() ? std::string("ok") : std::string(to_string(self.status.error().code));
          },
          "ok, or the code that kvferry.Error has.")
      .def_prop_ro(
          "error",
          [](const Outcome& self) { return self.status.ok() ? std::string() : self.status.error().to_string(); },
          "What failed, to whom, why and how far it had come; empty when nothing did.")
      .def_prop_ro(
          "remote_quiet", [](const Outcome& self) { return self.remote == RemoteQuiet::quiet; },
          "False after a failed write whose far side may still change.")
      .def_ro("bytes_done", &Outcome::bytes_done)
      .def_ro("spans_done", &Outcome::spans_done)
      .def_ro("fabric", &Outcome::fabric, "local or tcp; empty when nothing had started.")
      .def(
          "check",
          [](const Outcome& self) {
            check(self.status);
            return self;
          },
          "Returns itself; raises kvferry.Error when the transfer failed.")
      .def("__bool__", [](const Outcome& self) { return self.status.ok(); })
      .def("__repr__", [](const Outcome& self) {
        return self.status.ok() ? fmt::format("<kvferry.Outcome ok: {} bytes over {}>", self.bytes_done, self.fabric)
                                : fmt::format("<kvferry.Outcome {}>", self.status.error().to_string());
      });
}

void bind_regions(nb::module_& module) {
  nb::class_<PyRegion>(module, "Region", nb::is_weak_referenceable(),
                       "Memory of this process that its engine may use. It keeps the object whose memory it is alive; "
                       "when it is dropped or its `with` block ends, the memory is unregistered.")
      .def_prop_ro("id", [](const PyRegion& self) { return self.info().id; })
      .def_prop_ro("address", [](const PyRegion& self) { return self.info().base; })
      .def_prop_ro("length", [](const PyRegion& self) { return self.info().length; })
      .def_prop_ro(
          "kind", [](const PyRegion& self) { return std::string(to_string(self.info().kind)); },
          "Whose memory it is: host or cuda.")
      .def(
          "span",
          [](const PyRegion& self, uint64_t offset, std::optional<uint64_t> length) {
            return span_of(self.info(), offset, length);
          },
          "offset"_a = 0, "length"_a = nb::none(), nb::sig(kSpanSignature), "A part of it, for peers to name.")
      .def("unregister", &PyRegion::unregister, "patience"_a = 3.0,
           "When it returns, nothing touches the memory any more. Raises not_quiet when a stopped process on this host "
           "is in the middle of a write to it for longer than `patience` seconds; the memory is then never freed.")
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Region"))
      .def(
          "__exit__", [](PyRegion& self, const nb::args&) { self.unregister(3.0); },
          nb::sig("def __exit__(self, *args: object) -> None"))
      .def("__repr__", [](const PyRegion& self) { return describe_region("Region", self.info()); });
  nb::class_<RegionInfo>(module, "RemoteRegion", "A region of a peer, as the peer has told.")
      .def_ro("id", &RegionInfo::id)
      .def_ro("address", &RegionInfo::base, "Where it is in the peer's address space: a name, not a pointer.")
      .def_ro("length", &RegionInfo::length)
      .def_prop_ro("readable", [](const RegionInfo& self) { return (self.permissions & kRemoteRead) != 0; })
      .def_prop_ro("writable", [](const RegionInfo& self) { return (self.permissions & kRemoteWrite) != 0; })
      .def("span", &span_of, "offset"_a = 0, "length"_a = nb::none(), nb::sig(kSpanSignature), "A part of it.")
      .def("__repr__", [](const RegionInfo& self) { return describe_region("RemoteRegion", self); });
}

void bind_unregister_regions(nb::module_& module) {
  module.def(
      "unregister_regions",
      [](nb::handle given, double patience) {
        const nb::tuple held(nb::borrow(given));  // whoever has the list may change it meanwhile
        std::vector<PyRegion*> regions;
        for (const nb::handle region : held) regions.push_back(&nb::cast<PyRegion&>(region));
        PyRegion::unregister_all(regions, patience);
      },
      "regions"_a, "patience"_a = 3.0,
      nb::sig("def unregister_regions(regions: collections.abc.Iterable[Region], patience: float = 3.0) -> None"),
      "Region.unregister() of each; `patience` is for them together. Those that can be are unregistered even when "
      "others cannot; what the first of these failed with is raised.");
}

void bind_peer(nb::module_& module) {
  nb::class_<PeerRef>(module, "Peer", "Another engine, by its address. Sessions come and go behind it.")
      .def_prop_ro("address", &PeerRef::address)
      .def_prop_ro("engine_id", &PeerRef::engine_id, "Empty while there is no session.")
      .def_prop_ro("incarnation", &PeerRef::incarnation, "New at each start of the peer; 0 while there is no session.")
      .def(
          "connect",
          [](const PeerRef& self, double timeout) {
            check(without_gil([&] { return self.connect(to_duration(timeout)); }));
          },
          "timeout"_a = 5.0, "Waits until there is a session.")
      .def(
          "sync",
          [](const PeerRef& self, double timeout) {
            check(without_gil([&] { return self.sync(to_duration(timeout)); }));
          },
          "timeout"_a = 5.0, "A round trip: what the peer registered before this call is known after it.")
      .def("regions", &PeerRef::regions, "What is known of its regions: empty before the first contact.")
      .def("__repr__", [](const PeerRef& self) {
        return fmt::format("<kvferry.Peer {} \"{}\">", self.address(), self.engine_id());
      });
}

void bind_transfer(nb::module_& module) {
  nb::class_<Transfer>(module, "Transfer",
                       "A submitted transfer: wait() for it, poll() it, or await it in asyncio. Dropping it does not "
                       "cancel it; cancelling a task that awaits it does.")
      .def_prop_ro("id", &Transfer::id)
      .def("done", &Transfer::done)
      .def("poll", &Transfer::poll, "The outcome if there is one.")
      .def(
          "wait",
          [](const Transfer& self, std::optional<double> timeout) {
            auto outcome = wait_in_slices(self, timeout);
            if (!outcome) raise(Error{ErrorCode::deadline_exceeded, "the transfer has not ended yet; it goes on"});
            check(outcome->status);
            return *outcome;
          },
          "timeout"_a = nb::none(),
          "Waits for the outcome and returns it; raises kvferry.Error when the transfer failed. It comes by the "
          "transfer's own deadline; `timeout` (seconds) gives up waiting earlier.")
      .def(
          "cancel", [](const Transfer& self) { without_gil([&] { self.cancel(); }); },
          "When it returns, no byte moves from or to the local memory any more.")
      .def(
          "__await__",
          [](nb::object self) {
            return nb::module_::import_("kvferry.awaiting").attr("wait")(self).attr("__await__")();
          },
          nb::sig("def __await__(self) -> collections.abc.Generator[object, None, Outcome]"),
          "The outcome; raises kvferry.Error when the transfer failed.");
}

}  // namespace

void bind_handles(nb::module_& module) {
  bind_outcome(module);
  bind_regions(module);
  bind_unregister_regions(module);
  bind_peer(module);
  bind_transfer(module);
}

void bind_completion_queue(nb::module_& module) {
  nb::class_<CompletionQueue>(module, "CompletionQueue",
                              "Tells an event loop of the ends of the transfers and reads that it was given.")
      .def(nb::init<>())
      .def("fileno", &CompletionQueue::fd, "An eventfd: readable while take() has something to return.")
      .def("add", &CompletionQueue::add<Transfer>, "awaited"_a)
      .def("add", &CompletionQueue::add<ParcelReading>, "awaited"_a)
      .def("take", &CompletionQueue::take, "The ids of those that have ended since the last call.");
}

}  // namespace kvferry::python
