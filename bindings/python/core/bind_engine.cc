#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/core/addresses.h"
#include "bindings/python/core/bind.h"
#include "bindings/python/core/errors.h"
#include "bindings/python/core/integers.h"
#include "bindings/python/core/objects.h"
#include "bindings/python/core/protocol.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): holds "name"_a alone

namespace kvferry::python {
namespace {

using Texts = std::optional<std::vector<std::string>>;

// The environment first, then what the caller says.
EngineConfig make_config(std::optional<std::string> listen, std::optional<std::string> engine_id, const Texts& fabrics,
                         std::optional<std::string> protocol, bool fall_back, std::optional<double> timeout,
                         std::optional<bool> allow_open, std::optional<std::string> log) {
  const Environment environment = Environment::of_process();
  EngineConfig config = take(EngineConfig::from_environment(environment));
  if (listen) config.listen = *listen;
  if (engine_id) config.engine_id = *engine_id;
  if (timeout) config.default_timeout = to_duration(timeout);
  if (allow_open) config.allow_open = *allow_open;
  if (fabrics)
    config.fabrics = *fabrics;
  else if (protocol && !environment.get("KVFERRY_FABRICS"))
    check(apply_protocol(*protocol, fall_back, config));
  if (log) config.logger = make_stderr_logger(take(parse_log_level(*log)), "kvferry");
  return config;
}

Operation to_operation(const std::string& name) {
  if (name == "read") return Operation::read;
  if (name == "write") return Operation::write;
  throw nb::value_error("the operation must be read or write");
}

std::optional<Notification> to_notification(nb::handle given) {
  if (given.is_none()) return std::nullopt;
  const nb::tuple pair(nb::borrow(given));
  if (pair.size() != 2) throw nb::value_error("a notification is a pair of a name and its payload");
  const auto payload = nb::cast<nb::bytes>(pair[1]);
  return Notification{nb::cast<std::string>(pair[0]), std::string(payload.c_str(), payload.size())};
}

// One piece of local memory, or several in a list or tuple.
std::vector<Pair> local_pieces(nb::handle given) {
  std::vector<Pair> pairs;
  const auto add = [&](nb::handle piece) {
    Pair pair;
    if (nb::isinstance<PyRegion>(piece)) {
      const RegionInfo& info = nb::cast<const PyRegion&>(piece).info();
      pair.local = reinterpret_cast<std::byte*>(info.base);
      pair.length = info.length;
    } else {
      const Memory memory = memory_of(piece);
      pair.local = memory.base;
      pair.length = memory.length;
    }
    pairs.push_back(pair);
  };
  if (nb::isinstance<nb::list>(given) || nb::isinstance<nb::tuple>(given))
    for (const nb::handle piece : given) add(piece);
  else
    add(given);
  return pairs;
}

// Completes `pairs` by one span, or by as many as there are pairs.
void add_spans(nb::handle given, std::vector<Pair>& pairs) {
  const bool single = nb::isinstance<nb::tuple>(given) && nb::len(given) == 3 && PyLong_Check(given[0].ptr());
  const size_t count = single ? 1 : nb::len(given);
  if (count != pairs.size()) throw nb::value_error("there must be one span for each piece of local memory");
  for (size_t i = 0; i < count; ++i) {
    const nb::tuple span(single ? nb::borrow(given) : nb::object(given[i]));
    if (span.size() != 3) throw nb::value_error("a span is region, offset and length");
    pairs[i].region = nb::cast<uint64_t>(span[0]);
    pairs[i].offset = nb::cast<uint64_t>(span[1]);
    if (nb::cast<uint64_t>(span[2]) != pairs[i].length)
      throw nb::value_error(fmt::format("a span of {} bytes cannot pair with local memory of {}",
                                        nb::cast<uint64_t>(span[2]), pairs[i].length)
                                .c_str());
  }
}

Transfer submit(const PyEngine& self, Operation operation, const PeerRef& peer, nb::handle local, nb::handle remote,
                std::optional<double> timeout, nb::handle notify, uint64_t incarnation) {
  TransferRequest request;
  request.peer = peer;
  request.operation = operation;
  request.pairs = local_pieces(local);
  add_spans(remote, request.pairs);
  request.timeout = to_duration(timeout);
  request.notify = to_notification(notify);
  request.incarnation = incarnation;
  const auto engine = self.get();
  return take(without_gil([&] { return engine->submit(std::move(request)); }));
}

AddressTransfer address_transfer(const PeerRef& peer, const std::string& operation, nb::handle local, nb::handle remote,
                                 nb::handle lengths, std::optional<double> timeout, nb::handle notify) {
  AddressTransfer transfer;
  transfer.peer = peer;
  transfer.operation = to_operation(operation);
  transfer.local = integers(local, "local addresses");
  transfer.remote = integers(remote, "remote addresses");
  transfer.lengths = integers(lengths, "lengths");
  transfer.timeout = to_duration(timeout);
  transfer.notification = to_notification(notify);
  return transfer;
}

nb::list to_notifications(const std::vector<ReceivedNotification>& received) {
  const nb::object type = nb::module_::import_("kvferry.types").attr("Notification");
  nb::list out;
  for (const auto& [from, notification] : received)
    out.append(type(from, notification.name, nb::bytes(notification.payload.data(), notification.payload.size())));
  return out;
}

uint32_t to_permissions(bool readable, bool writable) {
  return (readable ? uint32_t{kRemoteRead} : 0) | (writable ? uint32_t{kRemoteWrite} : 0);
}

void bind_memory(nb::class_<PyEngine>& engine) {
  engine
      .def(
          "register",
          [](const PyEngine& self, nb::handle memory, bool readable, bool writable) {
            Memory held = memory_of(memory);
            const auto used = self.get();
            auto region = without_gil([&] {
              return used->register_memory(held.base, held.length, held.kind, to_permissions(readable, writable));
            });
            return PyRegion(take(std::move(region)), std::move(held));
          },
          "memory"_a, "readable"_a = false, "writable"_a = false,
          nb::sig("def register(self, memory: object, readable: bool = False, writable: bool = False) -> Region"),
          "Registers the memory of a numpy array, a torch tensor or anything else with the buffer protocol or "
          "__dlpack__. `readable`, `writable`: by peers.")
      .def(
          "register_address",
          [](const PyEngine& self, uint64_t address, uint64_t length, bool readable, bool writable) {
            const auto used = self.get();
            auto region = without_gil([&] {
              void* base = reinterpret_cast<void*>(address);
              return used->register_memory(base, length, used->kind_of(base), to_permissions(readable, writable));
            });
            return PyRegion(take(std::move(region)), Memory());
          },
          "address"_a, "length"_a, "readable"_a = false, "writable"_a = false,
          "As register(), for memory of the host or of a GPU that the caller keeps alive and in place until the region "
          "is unregistered.")
      .def(
          "register_addresses",
          [](const PyEngine& self, nb::handle addresses, nb::handle lengths, bool readable, bool writable) {
            const auto at = integers(addresses, "addresses");
            const auto bytes = integers(lengths, "lengths");
            const auto used = self.get();
            auto regions = take(
                without_gil([&] { return register_addresses(*used, at, bytes, to_permissions(readable, writable)); }));
            nb::list out;
            for (Region& region : regions)
              out.append(nb::cast(new PyRegion(std::move(region), Memory()), nb::rv_policy::take_ownership));
            return out;
          },
          "addresses"_a, "lengths"_a, "readable"_a = false, "writable"_a = false,
          nb::sig("def register_addresses(self, addresses: kvferry.types.Integers, lengths: kvferry.types.Integers, "
                  "readable: bool = False, writable: bool = False) -> list[Region]"),
          "register_address() of many, in their order: all or none.");
}

void bind_transfers(nb::class_<PyEngine>& engine) {
  engine
      .def(
          "read",
          [](const PyEngine& self, const PeerRef& peer, nb::handle local, nb::handle remote,
             std::optional<double> timeout, nb::handle notify, uint64_t incarnation) {
            return submit(self, Operation::read, peer, local, remote, timeout, notify, incarnation);
          },
          "peer"_a, "local"_a, "remote"_a, nb::kw_only(), "timeout"_a = nb::none(), "notify"_a = nb::none(),
          "incarnation"_a = 0,
          nb::sig("def read(self, peer: Peer, local: kvferry.types.LocalMemory, remote: kvferry.types.RemoteMemory, *, "
                  "timeout: float | None = None, notify: tuple[str, bytes] | None = None, incarnation: int = 0) -> "
                  "Transfer"),
          "Starts to copy spans of the peer into local memory: arrays or tensors inside of registered memory, or whole "
          "regions; a list of them pairs with a list of spans. `notify` (name, payload) reaches the peer's "
          "application after the data. `incarnation`: the peer's, when the spans are only good for that one.")
      .def(
          "write",
          [](const PyEngine& self, const PeerRef& peer, nb::handle local, nb::handle remote,
             std::optional<double> timeout, nb::handle notify, uint64_t incarnation) {
            return submit(self, Operation::write, peer, local, remote, timeout, notify, incarnation);
          },
          "peer"_a, "local"_a, "remote"_a, nb::kw_only(), "timeout"_a = nb::none(), "notify"_a = nb::none(),
          "incarnation"_a = 0,
          nb::sig("def write(self, peer: Peer, local: kvferry.types.LocalMemory, remote: kvferry.types.RemoteMemory, "
                  "*, timeout: float | None = None, notify: tuple[str, bytes] | None = None, incarnation: int = 0) -> "
                  "Transfer"),
          "As read(), from local memory to the peer.");
}

void bind_address_transfers(nb::class_<PyEngine>& engine) {
  engine
      .def(
          "transfer_addresses",
          [](const PyEngine& self, const PeerRef& peer, const std::string& operation, nb::handle local,
             nb::handle remote, nb::handle lengths, std::optional<double> timeout, nb::handle notify) {
            const auto transfer = address_transfer(peer, operation, local, remote, lengths, timeout, notify);
            const auto used = self.get();
            return without_gil([&] { return transfer_addresses(*used, transfer, self.connect_timeout()); });
          },
          "peer"_a, "operation"_a, "local"_a, "remote"_a, "lengths"_a, "timeout"_a = nb::none(),
          "notify"_a = nb::none(),
          nb::sig("def transfer_addresses(self, peer: Peer, operation: str, local: kvferry.types.Integers, remote: "
                  "kvferry.types.Integers, lengths: kvferry.types.Integers, timeout: float | None = None, notify: "
                  "tuple[str, bytes] | None = None) -> Outcome"),
          "Reads or writes between addresses here and addresses of the peer's address space, and waits. Lists, tuples "
          "and arrays of integers cost no Python loop. A failure is an outcome, not an exception.")
      .def(
          "submit_addresses",
          [](const PyEngine& self, const PeerRef& peer, const std::string& operation, nb::handle local,
             nb::handle remote, nb::handle lengths, std::optional<double> timeout, nb::handle notify) {
            const auto transfer = address_transfer(peer, operation, local, remote, lengths, timeout, notify);
            const auto used = self.get();
            return take(without_gil([&] { return submit_addresses(*used, transfer, self.connect_timeout()); }));
          },
          "peer"_a, "operation"_a, "local"_a, "remote"_a, "lengths"_a, "timeout"_a = nb::none(),
          "notify"_a = nb::none(),
          nb::sig("def submit_addresses(self, peer: Peer, operation: str, local: kvferry.types.Integers, remote: "
                  "kvferry.types.Integers, lengths: kvferry.types.Integers, timeout: float | None = None, notify: "
                  "tuple[str, bytes] | None = None) -> Transfer"),
          "As transfer_addresses(), without waiting for the transfer; it does wait for the session.");
}

void bind_rest(nb::class_<PyEngine>& engine) {
  engine.def_prop_ro("engine_id", [](const PyEngine& self) { return self.get()->engine_id(); })
      .def_prop_ro(
          "address", [](const PyEngine& self) { return self.get()->address(); }, "host:port that peers use.")
      .def(
          "peer",
          [](const PyEngine& self, const std::string& address) {
            const auto used = self.get();
            return take(without_gil([&] { return used->peer(address); }));
          },
          "address"_a, "The peer at host:port. Nothing is dialled before it is used.")
      .def(
          "notify",
          [](const PyEngine& self, const PeerRef& peer, const std::string& name, const nb::bytes& payload,
             std::optional<double> timeout) {
            Notification notification{name, std::string(payload.c_str(), payload.size())};
            const auto used = self.get();
            return take(without_gil([&] { return used->notify(peer, std::move(notification), to_duration(timeout)); }));
          },
          "peer"_a, "name"_a, "payload"_a = nb::bytes("", 0), nb::kw_only(), "timeout"_a = nb::none(),
          nb::sig("def notify(self, peer: Peer, name: str, payload: bytes = b\"\", *, timeout: float | None = None) -> "
                  "Transfer"),
          "Sends a notification alone.")
      .def(
          "notifications", [](const PyEngine& self) { return to_notifications(self.get()->notifications()); },
          nb::sig("def notifications(self) -> list[kvferry.types.Notification]"), "Takes what peers have sent.")
      .def(
          "describe",
          [](const PyEngine& self) {
            const auto used = self.get();
            return without_gil([&] { return used->describe(); });
          },
          "JSON: identity, peers, fabrics and why, quarantined ranges.")
      .def(
          "metrics", [](const PyEngine& self) { return self.get()->metrics(); }, "Prometheus' text format.")
      .def("close", &PyEngine::close, "Ends every transfer and session. Calls after it raise.")
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Engine"))
      .def(
          "__exit__", [](PyEngine& self, const nb::args&) { self.close(); },
          nb::sig("def __exit__(self, *args: object) -> None"));
}

}  // namespace

void bind_engine(nb::module_& module) {
  nb::class_<PyEngine> engine(module, "Engine", nb::is_weak_referenceable(),
                              "A transfer engine: regions of this process, sessions with peers. Thread-safe. What is "
                              "not given comes from the environment (KVFERRY_LISTEN and the others), then from the "
                              "defaults. `protocol` is tcp, auto, rdma or efa (KVFERRY_FABRICS goes before it); with "
                              "`fall_back`, what there is serves one that cannot be had, and describe() says why. "
                              "`fabrics` names fabrics themselves.");
  engine.def(
      "__init__",
      [](PyEngine* self, std::optional<std::string> listen, std::optional<std::string> engine_id, const Texts& fabrics,
         std::optional<std::string> protocol, bool fall_back, std::optional<double> timeout,
         std::optional<bool> allow_open, std::optional<std::string> log) {
        new (self) PyEngine(make_config(std::move(listen), std::move(engine_id), fabrics, std::move(protocol),
                                        fall_back, timeout, allow_open, std::move(log)));
      },
      "listen"_a = nb::none(), nb::kw_only(), "engine_id"_a = nb::none(), "fabrics"_a = nb::none(),
      "protocol"_a = nb::none(), "fall_back"_a = false, "timeout"_a = nb::none(), "allow_open"_a = nb::none(),
      "log"_a = nb::none());
  bind_memory(engine);
  bind_transfers(engine);
  bind_address_transfers(engine);
  bind_rest(engine);
}

}  // namespace kvferry::python
