#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

namespace kvferry::python {

// The integers of a list, a tuple, a one-dimensional buffer (a numpy array) or any other iterable, without running
// Python code for the first three. `name` is what a TypeError or ValueError calls them. REQUIRES: the GIL.
std::vector<uint64_t> integers(nanobind::handle source, const char* name);

}  // namespace kvferry::python
