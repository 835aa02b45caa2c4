#include <nanobind/nanobind.h>

#include "bindings/python/core/bind.h"

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
}
