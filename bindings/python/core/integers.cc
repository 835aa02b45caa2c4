#include "bindings/python/core/integers.h"

#include <cstring>
#include <optional>
#include <string>

namespace nb = nanobind;

namespace kvferry::python {
namespace {

[[noreturn]] void refuse(const char* name, const char* why) {
  PyErr_Clear();
  throw nb::value_error((std::string(name) + why).c_str());
}

uint64_t integer(PyObject* item, const char* name) {
  unsigned long long value = 0;
  if (PyLong_CheckExact(item)) {
    value = PyLong_AsUnsignedLongLong(item);
  } else {  // numpy's scalars, torch's
    const nb::object index = nb::steal(PyNumber_Index(item));
    if (!index.is_valid()) throw nb::python_error();
    value = PyLong_AsUnsignedLongLong(index.ptr());
  }
  if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr)
    refuse(name, " must be integers from 0 to 2**64 - 1");
  return value;
}

class BufferView {
 public:
  explicit BufferView(PyObject* source) {
    held_ = PyObject_GetBuffer(source, &view_, PyBUF_FORMAT | PyBUF_STRIDES) == 0;
    if (!held_) PyErr_Clear();
  }
  ~BufferView() {
    if (held_) PyBuffer_Release(&view_);
  }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;
  const Py_buffer* get() const { return held_ ? &view_ : nullptr; }

 private:
  Py_buffer view_{};
  bool held_ = false;
};

template <class T>
void append(const Py_buffer& view, const char* name, std::vector<uint64_t>& out) {
  const auto* at = static_cast<const char*>(view.buf);
  for (Py_ssize_t i = 0; i < view.shape[0]; ++i, at += view.strides[0]) {
    T value;
    std::memcpy(&value, at, sizeof value);
    if constexpr (std::is_signed_v<T>)
      if (value < 0) refuse(name, " must not be negative");
    out.push_back(static_cast<uint64_t>(value));
  }
}

// False: not an array of machine integers in this machine's byte order.
bool append_array(const Py_buffer& view, const char* name, std::vector<uint64_t>& out) {
  if (view.ndim != 1 || view.format == nullptr) return false;
  const char* format = view.format;
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (std::strlen(format) != 1) return false;
  const bool is_signed = std::strchr("hilqn", *format) != nullptr;
  if (!is_signed && std::strchr("HILQN", *format) == nullptr) return false;
  out.reserve(static_cast<size_t>(view.shape[0]));
  switch (view.itemsize) {
    case 2:
      is_signed ? append<int16_t>(view, name, out) : append<uint16_t>(view, name, out);
      return true;
    case 4:
      is_signed ? append<int32_t>(view, name, out) : append<uint32_t>(view, name, out);
      return true;
    case 8:
      is_signed ? append<int64_t>(view, name, out) : append<uint64_t>(view, name, out);
      return true;
    default:
      return false;
  }
}

}  // namespace

std::vector<uint64_t> integers(nb::handle source, const char* name) {
  std::vector<uint64_t> out;
  if (!PyList_CheckExact(source.ptr()) && !PyTuple_CheckExact(source.ptr()) && PyObject_CheckBuffer(source.ptr())) {
    const BufferView view(source.ptr());
    if (view.get() != nullptr && append_array(*view.get(), name, out)) return out;
  }
  const nb::object items = nb::steal(PySequence_Fast(source.ptr(), "integers must be given as a sequence"));
  if (!items.is_valid()) throw nb::python_error();
  // The size is asked for anew: an item's __index__ may change the list.
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    if (i == 0) out.reserve(static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
    const nb::object item = nb::borrow(PySequence_Fast_GET_ITEM(items.ptr(), i));
    out.push_back(integer(item.ptr(), name));
  }
  return out;
}

}  // namespace kvferry::python
