#include "bindings/python/core/errors.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

namespace nb = nanobind;

namespace kvferry::python {

void raise(const Error& error) {
  const nb::object type = nb::module_::import_("kvferry.types").attr("Error");
  const std::string code(to_string(error.code));
  const nb::object raised = type(error.to_string(), code.c_str(), error.peer.c_str(), error.where.c_str());
  PyErr_SetObject(type.ptr(), raised.ptr());
  throw nb::python_error();
}

}  // namespace kvferry::python
