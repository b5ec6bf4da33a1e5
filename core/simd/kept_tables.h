#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvcompress::simd {

// For each mask of `kValues` values of kWidth bytes the indices of bytes that move a vector's kept values together, or
// apart; 0x80, which makes a zero, for the rest.
template <size_t kValues, size_t kWidth>
struct KeptTables {
  using Indices = std::array<uint8_t, kValues * kWidth>;
  alignas(16) std::array<Indices, size_t{1} << kValues> pack;
  alignas(16) std::array<Indices, size_t{1} << kValues> unpack;
};

template <size_t kValues, size_t kWidth>
constexpr KeptTables<kValues, kWidth> MakeKeptTables() {
  KeptTables<kValues, kWidth> tables{};
  for (size_t mask = 0; mask < tables.pack.size(); ++mask) {
    tables.pack[mask].fill(0x80);
    tables.unpack[mask].fill(0x80);
    size_t kept = 0;
    for (size_t i = 0; i < kValues; ++i) {
      if ((mask >> i & 1) == 0) continue;
      for (size_t byte = 0; byte < kWidth; ++byte) {
        tables.pack[mask][kept * kWidth + byte] = static_cast<uint8_t>(i * kWidth + byte);
        tables.unpack[mask][i * kWidth + byte] = static_cast<uint8_t>(kept * kWidth + byte);
      }
      ++kept;
    }
  }
  return tables;
}

// A vector of 128 bits has 8 values of two bytes or 4 of four; of one byte, half a vector has 8.
template <size_t kWidth>
inline constexpr auto kKeptTables = MakeKeptTables<(kWidth == 4 ? 4 : 8), kWidth>();

}  // namespace kvcompress::simd
