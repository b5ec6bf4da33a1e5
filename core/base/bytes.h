#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kvcompress {

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

inline ByteSpan AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view AsText(ByteSpan bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// Every integer of the formats is little-endian, and so is every host that we build for.
static_assert(std::endian::native == std::endian::little);

template <typename T>
T LoadLE(const std::byte* from) {
  static_assert(std::is_integral_v<T>);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
void StoreLE(T value, std::byte* to) {
  static_assert(std::is_integral_v<T>);
  std::memcpy(to, &value, sizeof(T));
}

// Reads little-endian integers and runs of bytes from a hostile buffer. A read past the end returns false and leaves
// the reader where it was.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : rest_(bytes) {}

  size_t remaining() const { return rest_.size(); }

  template <typename T>
  [[nodiscard]] bool Read(T& value) {
    if (rest_.size() < sizeof(T)) return false;
    value = LoadLE<T>(rest_.data());
    rest_ = rest_.subspan(sizeof(T));
    return true;
  }

  [[nodiscard]] bool ReadBytes(size_t count, ByteSpan& bytes) {
    if (rest_.size() < count) return false;
    bytes = rest_.first(count);
    rest_ = rest_.subspan(count);
    return true;
  }

 private:
  ByteSpan rest_;
};

// Appends little-endian integers and bytes to a growing buffer.
class ByteWriter {
 public:
  explicit ByteWriter(std::vector<std::byte>& out) : out_(out) {}

  template <typename T>
  void Write(T value) {
    const size_t at = out_.size();
    out_.resize(at + sizeof(T));
    StoreLE(value, out_.data() + at);
  }

  void WriteBytes(ByteSpan bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }

 private:
  std::vector<std::byte>& out_;
};

}  // namespace kvcompress
