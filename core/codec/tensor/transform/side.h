#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <vector>

#include "core/codec/bit_context.h"
#include "core/codec/range_coder.h"
#include "core/codec/tensor/transform/segment.h"
#include "core/codec/tensor/transform/tables.h"

// The side information of the codec `transform`: a syntax that both directions share. A coder's Bit writes the bit that
// it is given, or sets it to the one that it reads.
namespace kvcompress {

inline void SwapWords(MutableByteSpan words) {
  for (size_t i = 0; i < words.size(); i += 4) std::reverse(words.data() + i, words.data() + i + 4);
}

class SideWriter {
 public:
  explicit SideWriter(MutableByteSpan room) : room_(room), encoder_(room) {}

  static constexpr bool kReads = false;
  void Bit(BitContext& context, bool& bit) {
    encoder_.EncodeBit(bit, context.probability());
    context.Learn(bit);
  }
  void EvenBit(bool& bit) { encoder_.EncodeBit(bit, 1u << (kRangeBits - 1)); }

  // Nothing where the room did not suffice; else the size of the text: words with their highest byte first, without
  // the zeros at the end.
  std::optional<size_t> Finish() {
    encoder_.RoundUp();
    if (!encoder_.Finish()) return std::nullopt;
    size_t size = encoder_.text().size();
    SwapWords(room_.first(size));
    while (size > 0 && room_[size - 1] == std::byte{0}) --size;
    return size;
  }

 private:
  MutableByteSpan room_;
  RangeEncoder encoder_;
};

class SideReader {
 public:
  explicit SideReader(ByteSpan text)
      : ends_in_zero_(!text.empty() && text.back() == std::byte{0}), words_(WordsOf(text)), decoder_(words_) {}

  static constexpr bool kReads = true;
  void Bit(BitContext& context, bool& bit) {
    bit = decoder_.DecodeBit(context.probability());
    context.Learn(bit);
  }
  void EvenBit(bool& bit) { bit = decoder_.DecodeBit(1u << (kRangeBits - 1)); }
  // Whether it has read all of what a writer can have written.
  bool Finish() const { return decoder_.has_taken_all() && !ends_in_zero_; }

 private:
  static std::vector<std::byte> WordsOf(ByteSpan text) {
    std::vector<std::byte> words((text.size() + 3) / 4 * 4);
    std::ranges::copy(text, words.begin());
    SwapWords(words);
    return words;
  }

  bool ends_in_zero_;
  std::vector<std::byte> words_;
  RangeDecoder decoder_;
};

// Numbers from 0 up, smaller ones more probable: the length of n + 1 in bits, then its bits below the highest.
class NumberModel {
 public:
  // No longer number is read; none is written.
  static constexpr int kMaxLength = 28;

  template <typename Coder>
  void Code(Coder& coder, uint32_t& number) {
    const uint32_t own = number + 1;
    const int own_length = std::bit_width(own) - 1;
    int length = 0;
    for (; length < kMaxLength; ++length) {
      bool longer = length < own_length;
      coder.Bit(lengths_[static_cast<size_t>(length)], longer);
      if (!longer) break;
    }
    uint32_t bits = 1;
    for (int i = length - 1; i >= 0; --i) {
      bool bit = (own >> i & 1) != 0;
      if (length <= kMaxLearned) {
        coder.Bit(low_[(1u << length) + bits], bit);
      } else {
        coder.EvenBit(bit);
      }
      bits = 2 * bits + bit;
    }
    number = bits - 1;
  }

  // Numbers of either sign: 0, 1, -1, 2, -2, ...
  template <typename Coder>
  void CodeSigned(Coder& coder, int32_t& number) {
    auto folded = static_cast<uint32_t>(number > 0 ? 2 * number - 1 : -2 * number);
    Code(coder, folded);
    number = folded % 2 != 0 ? static_cast<int32_t>(folded / 2 + 1) : -static_cast<int32_t>(folded / 2);
  }

 private:
  static constexpr int kMaxLearned = 3;  // of longer numbers the bits below the highest are as likely 0 as 1

  std::array<BitContext, kMaxLength> lengths_;
  std::array<BitContext, 2 << kMaxLearned> low_;
};

class SideModels {
 public:
  // Codes what a segment says beside its place. `before` is the segment before it, or null. False for what no writer
  // writes.
  template <typename Coder>
  bool CodeSegment(Coder& coder, const Segment* before, Segment& segment) {
    coder.Bit(turned_, segment.turned);
    coder.Bit(has_means_, segment.has_means);
    if (!CodeSpecial(coder, segment)) return false;
    bool repeats = before != nullptr && before->channels == segment.channels && segment.repeats;
    if (before != nullptr && before->channels == segment.channels) coder.Bit(repeats_, repeats);
    segment.repeats = repeats;
    segment.classes.resize(segment.channels);
    segment.means.resize(segment.channels);
    for (size_t c = 0; c < segment.channels; ++c) {
      if (!CodeChannel(coder, repeats ? before : nullptr, segment, c)) return false;
    }
    return true;
  }

  // The upper part of a value that its table does not have: its magnitude beyond the table's reach, and its sign.
  template <typename Coder>
  void CodeEscape(Coder& coder, int32_t reach, int32_t& high) {
    auto beyond = static_cast<uint32_t>(std::abs(high) - reach - 1);
    escapes_.Code(coder, beyond);
    bool negative = high < 0;
    coder.EvenBit(negative);
    high = static_cast<int32_t>(beyond) + reach + 1;
    if (negative) high = -high;
  }

 private:
  template <typename Coder>
  bool CodeSpecial(Coder& coder, Segment& segment) {
    auto count = static_cast<uint32_t>(segment.special.size());
    special_count_.Code(coder, count);
    if (count > segment.tokens) return false;
    segment.special.resize(count);
    uint32_t next = 0;
    for (SpecialToken& special : segment.special) {
      uint32_t gap = special.token - next;
      special_gap_.Code(coder, gap);
      auto shift = static_cast<uint32_t>(special.step_shift);
      step_shift_.Code(coder, shift);
      class_shift_.CodeSigned(coder, special.class_shift);
      if (gap >= segment.tokens - next || shift > kMaxStepShift || std::abs(special.class_shift) > kMaxClassShift) {
        return false;
      }
      special.token = next + gap;
      special.step_shift = static_cast<int>(shift);
      next = special.token + 1;
    }
    return true;
  }

  template <typename Coder>
  bool CodeChannel(Coder& coder, const Segment* before, Segment& segment, size_t c) {
    const int expected = before != nullptr ? before->classes[c] : c > 0 ? segment.classes[c - 1] : 0;
    int difference = segment.classes[c] - expected;
    class_[before != nullptr].CodeSigned(coder, difference);
    segment.classes[c] = expected + difference;
    if (segment.classes[c] < kMinClass || segment.classes[c] > kMaxClass) return false;
    if (!segment.has_means) {
      segment.means[c] = 0;
      return true;
    }
    const int32_t expected_mean = before != nullptr ? before->means[c] : 0;
    const int shift = simd::MeanShift(segment.classes[c], segment.tokens);
    int32_t steps = (segment.means[c] - expected_mean) / (1 << shift);
    mean_[before != nullptr].CodeSigned(coder, steps);
    const int64_t mean = expected_mean + int64_t{steps} * (1 << shift);
    segment.means[c] = static_cast<int32_t>(std::clamp<int64_t>(mean, -kMaxMean - 1, kMaxMean + 1));
    return std::abs(segment.means[c]) <= kMaxMean;
  }

 public:
  static constexpr uint32_t kMaxStepShift = 3;
  static constexpr int kMaxClassShift = 100;
  static constexpr int32_t kMaxMean = 1 << 24;

 private:
  BitContext turned_, has_means_, repeats_;
  NumberModel special_count_, special_gap_, step_shift_, class_shift_;
  std::array<NumberModel, 2> class_, mean_;  // by whether the segment before says what to expect
  NumberModel escapes_;
};

}  // namespace kvcompress
