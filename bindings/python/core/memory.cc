#include "bindings/python/core/memory.h"

#include <nanobind/ndarray.h>

namespace nb = nanobind;

namespace kvferry::python {
namespace {

Memory of_buffer(nb::handle object) {
  Py_buffer view;
  if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_ANY_CONTIGUOUS | PyBUF_WRITABLE) != 0) {
    PyErr_Clear();
    throw nb::value_error("memory must be writable and contiguous");
  }
  Memory memory;
  memory.base = static_cast<std::byte*>(view.buf);
  memory.length = static_cast<uint64_t>(view.len);
  PyBuffer_Release(&view);
  // The view keeps a bytearray from being resized.
  memory.owner = nb::steal(PyMemoryView_FromObject(object.ptr()));
  if (!memory.owner.is_valid()) throw nb::python_error();
  return memory;
}

bool is_contiguous(const nb::ndarray<>& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.ndim(); i-- > 0;) {
    if (tensor.shape(i) != 1 && tensor.stride(i) != expected) return false;
    expected *= static_cast<int64_t>(tensor.shape(i));
  }
  return true;
}

Memory of_tensor(nb::handle object) {
  nb::ndarray<> tensor;
  if (!nb::try_cast(object, tensor) || !tensor.is_valid())
    throw nb::type_error("memory must have the buffer protocol or __dlpack__");
  if (!is_contiguous(tensor)) throw nb::value_error("memory must be contiguous");
  Memory memory;
  memory.base = static_cast<std::byte*>(tensor.data());
  memory.length = tensor.nbytes();
  const int device = tensor.device_type();
  if (device == nb::device::cuda::value)
    memory.kind = MemoryKind::cuda;
  else if (device != nb::device::cpu::value && device != nb::device::cuda_host::value)
    throw nb::value_error("memory of this device cannot be used");
  memory.owner = nb::borrow(object);
  return memory;
}

}  // namespace

Memory memory_of(nb::handle object) {
  return PyObject_CheckBuffer(object.ptr()) != 0 ? of_buffer(object) : of_tensor(object);
}

}  // namespace kvferry::python
