#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/strided_span.h"

namespace kvcompress {

// The bytes of a Python object, which stay where they are as long as this lives.
class View {
 public:
  View(nanobind::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw nanobind::python_error();
  }
  View(View&& other) noexcept : buffer_(std::exchange(other.buffer_, Py_buffer{})) {}
  View& operator=(View&&) = delete;
  ~View() { PyBuffer_Release(&buffer_); }

  // Of an object that was asked for contiguous ones.
  MutableByteSpan bytes() const { return {static_cast<std::byte*>(buffer_.buf), static_cast<size_t>(buffer_.len)}; }
  // Of one that was asked for its strides (PyBUF_STRIDES) and has at most kMaxLevels axes, in the order of its
  // elements.
  template <typename Byte = std::byte>
  StridedSpan<Byte> elements() const {
    std::array<StridedLevel, StridedSpan<Byte>::kMaxLevels> levels{};
    const size_t axes = std::min(levels.size(), static_cast<size_t>(buffer_.ndim));
    for (size_t axis = 0; axis < axes; ++axis) {
      levels[axis] = {static_cast<uint64_t>(buffer_.shape[axis]), buffer_.strides[axis]};
    }
    return {static_cast<std::byte*>(buffer_.buf), static_cast<uint64_t>(buffer_.itemsize),
            std::span<const StridedLevel>(levels).first(axes)};
  }

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
