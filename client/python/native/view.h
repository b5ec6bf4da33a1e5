#pragma once

#include <nanobind/nanobind.h>

#include <string_view>
#include <utility>

#include "core/base/bytes.h"

namespace kvcompress {

// The bytes of a Python object that has contiguous ones, which stay where they are as long as this lives.
class View {
 public:
  View(nanobind::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw nanobind::python_error();
  }
  View(View&& other) noexcept : buffer_(std::exchange(other.buffer_, Py_buffer{})) {}
  View& operator=(View&&) = delete;
  ~View() { PyBuffer_Release(&buffer_); }

  MutableByteSpan bytes() const { return {static_cast<std::byte*>(buffer_.buf), static_cast<size_t>(buffer_.len)}; }

 private:
  Py_buffer buffer_ = {};
};

// Of an object of bytes, as long as that lives.
inline std::string_view TextOf(nanobind::handle object) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(object.ptr(), &data, &size) != 0) throw nanobind::python_error();
  return {data, static_cast<size_t>(size)};
}

}  // namespace kvcompress
