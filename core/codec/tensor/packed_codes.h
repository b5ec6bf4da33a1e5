#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/simd/uniform_quant.h"

namespace kvcompress {

// Codes that are packed in groups of 128 (docs/format.md, "quant"), for codecs that make or take a tile of them at a
// time: the values of a tile, and its codes a byte each, stay in the cache, where those of a block do not.
class PackedCodes {
 public:
  static constexpr size_t kTile = 4096;

 protected:
  static constexpr size_t kGroup = 128;
};

class PackedCodeWriter : private PackedCodes {
 public:
  PackedCodeWriter(int bits, std::byte* out) : bits_(bits), out_(reinterpret_cast<uint8_t*>(out)) {}

  // Where the next codes go, up to kTile of them, which Take() then packs.
  uint8_t* next() { return codes_ + held_; }
  void Take(size_t count) {
    held_ += count;
    const size_t whole = held_ / kGroup * kGroup;
    simd::PackCodes(bits_, codes_, whole, out_);
    out_ += simd::PackedCodeBytes(bits_, whole);
    held_ -= whole;
    std::memmove(codes_, codes_ + whole, held_);
  }
  void Finish() { simd::PackCodes(bits_, codes_, held_, out_); }

 private:
  const int bits_;
  uint8_t* out_;
  size_t held_ = 0;  // codes of a group that is not whole yet
  alignas(64) uint8_t codes_[kTile + kGroup];
};

class PackedCodeReader : private PackedCodes {
 public:
  // Of a stream of `count` codes.
  PackedCodeReader(int bits, const std::byte* stream, size_t count)
      : bits_(bits), stream_(reinterpret_cast<const uint8_t*>(stream)), count_(count) {}

  // The next `count` codes, at most kTile, until the next call.
  const uint8_t* Next(size_t count) {
    const size_t first = at_ / kGroup * kGroup;
    const size_t end = std::min(count_, (at_ + count + kGroup - 1) / kGroup * kGroup);
    simd::UnpackCodes(bits_, stream_ + simd::PackedCodeBytes(bits_, first), end - first, codes_);
    const uint8_t* const next = codes_ + (at_ - first);
    at_ += count;
    return next;
  }

 private:
  const int bits_;
  const uint8_t* const stream_;
  const size_t count_;
  size_t at_ = 0;
  alignas(64) uint8_t codes_[kTile + 2 * kGroup];
};

}  // namespace kvcompress
