#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

// Streams for tests of byte codecs.
namespace kvcompress::testing {

// `count` bytes of which byte k has a probability in proportion to base^k.
inline std::vector<std::byte> Geometric(size_t count, double base) {
  std::mt19937_64 random(count);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) {
    const double u = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
    byte = static_cast<std::byte>(std::min(255.0, std::floor(std::log(u) / std::log(base))));
  }
  return bytes;
}

// What the order-0 entropy of all of them comes to.
inline double EntropyBytes(const std::vector<std::byte>& bytes) {
  std::array<double, 256> counts = {};
  for (std::byte b : bytes) counts[std::to_integer<size_t>(b)] += 1;
  double bits = 0;
  for (double c : counts) bits += c > 0 ? c * std::log2(static_cast<double>(bytes.size()) / c) : 0;
  return bits / 8;
}

}  // namespace kvcompress::testing
