#pragma once

#include <nanobind/nanobind.h>

namespace kvferry::python {

// Each adds its classes to the module kvferry._core; the handles before the engine that returns them.
void bind_handles(nanobind::module_& module);
void bind_engine(nanobind::module_& module);
void bind_layout(nanobind::module_& module);
void bind_parcels(nanobind::module_& module);
void bind_bootstrap(nanobind::module_& module);
void bind_completion_queue(nanobind::module_& module);

}  // namespace kvferry::python
