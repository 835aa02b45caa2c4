#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/core/bind.h"
#include "bindings/python/core/errors.h"
#include "bindings/python/core/protocol.h"

namespace nb = nanobind;

NB_MODULE(_core, module) {
  module.doc() = "The transfer engine of kvferry. Import it from the package kvferry.";
  nb::set_leak_warnings(false);  // what lives until the interpreter ends is no leak, and this library is quiet
  kvferry::python::bind_handles(module);
  kvferry::python::bind_engine(module);
  kvferry::python::bind_layout(module);
  kvferry::python::bind_parcels(module);
  kvferry::python::bind_bootstrap(module);
  kvferry::python::bind_completion_queue(module);
  module.def(
      "choose_fabrics",
      [](const std::string& protocol, bool may_fall_back) {
        auto choice = kvferry::python::take(kvferry::python::choose_fabrics(protocol, may_fall_back));
        return nb::make_tuple(choice.fabrics, choice.fallback);
      },
      nb::arg("protocol"), nb::arg("may_fall_back"),
      nb::sig("def choose_fabrics(protocol: str, may_fall_back: bool) -> tuple[list[str], str]"),
      "The fabrics that a protocol (tcp, auto, rdma, efa) means here, and, where it may fall back, why it had to.");
}
