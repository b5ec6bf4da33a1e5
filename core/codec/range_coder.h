#pragma once

#include <array>
#include <cstdint>

#include "core/base/buffer.h"
#include "core/base/bytes.h"

// A range coder (docs/format.md, "Range coder"): 64 bits of range, words of 32 bits. Streams are coded by lanes that
// take turns, each a coder of its own, so that a CPU has several to work on.
namespace kvcompress {

// Probabilities are in units of 2^-kRangeBits.
inline constexpr int kRangeBits = 16;
inline constexpr uint64_t kRangeLow = uint64_t{1} << 32;  // no range stays below

class RangeEncoder {
 public:
  RangeEncoder() = default;
  explicit RangeEncoder(MutableByteSpan room)
      : begin_(room.data()), out_(room.data()), end_(room.data() + room.size() / 4 * 4) {}

  // Codes what has the probabilities [start, start + size); size > 0.
  void Encode(uint32_t start, uint32_t size) {
    const uint64_t unit = range_ >> kRangeBits;
    low_ += unit * start;
    if (low_ < unit * start) Carry(begin_, out_);
    Narrow(unit * size);
  }
  // Codes a bit that is 1 with probability p, 0 < p < 2^kRangeBits.
  void EncodeBit(bool bit, uint32_t p) {
    const uint64_t ones = (range_ >> kRangeBits) * p;
    // Masks, not branches: the bits that matter are those that no CPU predicts.
    const uint64_t if_zero = uint64_t{bit} - 1;
    const uint64_t skipped = ones & if_zero;
    low_ += skipped;
    if (low_ < skipped) Carry(begin_, out_);
    Narrow(ones + ((range_ - 2 * ones) & if_zero));
  }

  // False if the room did not suffice; else text() is all that the decoder needs.
  [[nodiscard]] bool Finish() {
    PutWord();
    PutWord();
    return !full_;
  }
  ByteSpan text() const { return {begin_, out_}; }

  // Adds to the number what makes as many of its last bytes zero as can be: it stays below what comes next, so it
  // decodes to the same, but not to a text whose decoder may Finish.
  void RoundUp() {
    for (int bits = 56; bits >= 32; bits -= 8) {
      const uint64_t up = -low_ & ((uint64_t{1} << bits) - 1);
      if (up >= range_) continue;
      low_ += up;
      if (low_ < up) Carry(begin_, out_);
      return;
    }
  }

 private:
  void Narrow(uint64_t range) {
    range_ = range;
    if (range_ < kRangeLow) {
      PutWord();
      range_ <<= 32;
    }
  }
  void PutWord() {
    if (out_ == end_) {
      full_ = true;
      return;
    }
    StoreLE(static_cast<uint32_t>(low_ >> 32), out_);
    out_ += 4;
    low_ <<= 32;
  }
  // Adds one to the words so far, as a number whose first word is its highest. It does not overflow: the code is a
  // fraction below 1. Static, so that no encoder has to lie in memory for it.
  static void Carry(const std::byte* begin, std::byte* out);

  uint64_t low_ = 0;
  uint64_t range_ = ~uint64_t{0};
  std::byte* begin_ = nullptr;
  std::byte* out_ = nullptr;
  std::byte* end_ = nullptr;
  bool full_ = false;
};

// Any text decodes to something; Finish() tells whether it was an encoder's.
class RangeDecoder {
 public:
  RangeDecoder() = default;
  explicit RangeDecoder(ByteSpan text) : in_(text.data()), end_(text.data() + text.size() / 4 * 4) {
    value_ = uint64_t{Word()} << 32;
    value_ |= Word();
  }

  // The probability, below 2^kRangeBits, that the next symbol covers; Consume() that symbol then.
  uint32_t Peek() const {
    const uint64_t at = value_ / (range_ >> kRangeBits);
    return at >> kRangeBits == 0 ? static_cast<uint32_t>(at) : (1u << kRangeBits) - 1;
  }
  void Consume(uint32_t start, uint32_t size) {
    const uint64_t unit = range_ >> kRangeBits;
    value_ -= unit * start;
    range_ = unit * size;
    Refill();
  }

  bool DecodeBit(uint32_t p) {
    const uint64_t ones = (range_ >> kRangeBits) * p;
    const bool bit = value_ < ones;
    const uint64_t if_zero = uint64_t{bit} - 1;
    value_ -= ones & if_zero;
    range_ = ones + ((range_ - 2 * ones) & if_zero);
    Refill();
    return bit;
  }

  bool Finish() const { return value_ == 0 && in_ == end_ && !short_; }
  // Whether it has taken all words. What is missing at the end it takes for zeros.
  bool has_taken_all() const { return in_ == end_; }

 private:
  void Refill() {
    if (range_ >= kRangeLow) return;
    range_ <<= 32;
    value_ = value_ << 32 | Word();
  }
  uint32_t Word() {
    if (in_ == end_) {
      short_ = true;
      return 0;
    }
    const auto word = LoadLE<uint32_t>(in_);
    in_ += 4;
    return word;
  }

  uint64_t value_ = 0;
  uint64_t range_ = ~uint64_t{0};
  const std::byte* in_ = nullptr;
  const std::byte* end_ = nullptr;
  bool short_ = false;
};

// Lanes of a stream of `raw_size` bytes: byte i is lane i % lanes'.
inline constexpr size_t kRangeLanes = 4;
inline constexpr size_t kRangeLanesFrom = 4096;  // fewer bytes have one lane
constexpr size_t RangeLanesFor(size_t raw_size) { return raw_size < kRangeLanesFrom ? 1 : kRangeLanes; }

using RangeEncoders = std::array<RangeEncoder, kRangeLanes>;
using RangeDecoders = std::array<RangeDecoder, kRangeLanes>;

// Encoders whose texts have room for `room` bytes each, in a place of the thread.
RangeEncoders BeginRangeLanes(size_t lanes, size_t room);
// Ends the encoders and puts their texts together in `encoded`; returns the size, or 0 when they do not fit.
size_t FinishRangeLanes(size_t lanes, RangeEncoders& encoders, MutableByteSpan encoded);

// False if `encoded` is not the text of so many lanes.
[[nodiscard]] bool ReadRangeLanes(ByteSpan encoded, size_t lanes, RangeDecoders& decoders);
// Whether each lane ended where its text does.
bool EndRangeLanes(size_t lanes, const RangeDecoders& decoders);

}  // namespace kvcompress
