#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/strided_span.h"

namespace kvcompress {

// The bytes of a Python object, which stay where they are as long as this lives.
class View {
 public:
  View(nanobind::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw nanobind::python_error();
  }
  // Nothing of an object that does not lend its bytes like that.
  static std::optional<View> Of(nanobind::handle object, int flags) {
    View view;
    if (PyObject_GetBuffer(object.ptr(), &view.buffer_, flags) == 0) return view;
    PyErr_Clear();
    return std::nullopt;
  }
  View(View&& other) noexcept : buffer_(other.buffer_) {
    // Of objects like bytes these lie in the buffer itself.
    if (buffer_.shape == &other.buffer_.len) buffer_.shape = &buffer_.len;
    if (buffer_.strides == &other.buffer_.itemsize) buffer_.strides = &buffer_.itemsize;
    other.buffer_ = {};
  }
  View& operator=(View&&) = delete;
  ~View() { PyBuffer_Release(&buffer_); }

  // As the module struct writes it, of an object that was asked for it (PyBUF_FORMAT).
  std::string_view format() const { return buffer_.format; }
  size_t axes() const { return static_cast<size_t>(buffer_.ndim); }
  // Of one that was asked for its strides.
  std::vector<uint64_t> shape() const { return {buffer_.shape, buffer_.shape + buffer_.ndim}; }

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
  View() = default;

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
