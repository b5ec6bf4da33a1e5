#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/prefix_codes.cc"
#include "core/simd/prefix_codes.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>

// Nothing here is a vector: it is compiled for each instruction set because from AVX2 on a shift takes one step, by
// BMI2, in place of three.
HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Between two looks at the position in a stream at least 57 bits are at hand: five codes.
constexpr size_t kCodesAtOnce = 5;
constexpr size_t kRunBytes = 4;

static_assert(std::endian::native == std::endian::little);
HWY_INLINE uint64_t LoadBits(const uint8_t* from) {
  uint64_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

// How many steps of kCodesAtOnce runs the stream has room for, whatever they are: each reads 8 bytes, of which it uses
// up to 7.
HWY_INLINE size_t StepsWithin(const PrefixStream& stream) {
  const auto in = static_cast<size_t>(stream.in_end - stream.in);
  const auto out = static_cast<size_t>(stream.out_end - stream.out);
  return in < 8 ? 0 : std::min((in - 1) / 7, out / (kCodesAtOnce * kRunBytes));
}

template <size_t kCount>
HWY_INLINE size_t StepsWithinAll(const PrefixStream* streams) {
  size_t steps = StepsWithin(streams[0]);
  for (size_t k = 1; k < kCount; ++k) steps = std::min(steps, StepsWithin(streams[k]));
  return steps;
}

template <size_t kCount>
HWY_INLINE void DecodeSteps(const uint64_t* runs, PrefixStream* streams) {
  while (const size_t steps = StepsWithinAll<kCount>(streams)) {
    const uint8_t* in[kCount];
    uint8_t* out[kCount];
    uint32_t bit[kCount];
    for (size_t k = 0; k < kCount; ++k) {
      in[k] = streams[k].in;
      out[k] = streams[k].out;
      bit[k] = streams[k].bit;
    }
    for (size_t step = 0; step < steps; ++step) {
      // The highest bit marks how far the bits have moved.
      uint64_t bits[kCount];
#pragma GCC unroll 4
      for (size_t k = 0; k < kCount; ++k) bits[k] = (LoadBits(in[k]) | uint64_t{1} << 63) >> bit[k];
#pragma GCC unroll 5
      for (size_t code = 0; code < kCodesAtOnce; ++code) {
#pragma GCC unroll 4
        for (size_t k = 0; k < kCount; ++k) {
          const uint64_t run = runs[bits[k] % (size_t{1} << kMaxPrefixBits)];
          bits[k] >>= run & 63;
          const auto symbols = static_cast<uint32_t>(run >> 32);
          std::memcpy(out[k], &symbols, sizeof(symbols));
          out[k] += run >> 8 & 0xff;
        }
      }
#pragma GCC unroll 4
      for (size_t k = 0; k < kCount; ++k) {
        const auto moved = static_cast<uint32_t>(std::countl_zero(bits[k]));
        in[k] += moved / 8;
        bit[k] = moved % 8;
      }
    }
    for (size_t k = 0; k < kCount; ++k) {
      streams[k].in = in[k];
      streams[k].out = out[k];
      streams[k].bit = bit[k];
    }
  }
}

}  // namespace

uint8_t* EncodeCodes(const PrefixCodes& codes, const uint8_t* raw, size_t size, uint8_t* out) {
  uint64_t pending = 0;
  uint64_t held = 0;
  const auto append = [&](uint8_t symbol) HWY_ATTR {
    pending |= codes.bits[symbol] << held;
    held += codes.lengths[symbol];
  };
  const auto flush = [&]() HWY_ATTR {
    std::memcpy(out, &pending, sizeof(pending));
    out += held / 8;
    pending >>= held & ~uint64_t{7};  // at most 56
    held %= 8;
  };
  size_t i = 0;
  for (; i + kCodesAtOnce <= size; i += kCodesAtOnce) {
#pragma GCC unroll 5
    for (size_t k = 0; k < kCodesAtOnce; ++k) append(raw[i + k]);
    flush();
  }
  for (; i < size; ++i) append(raw[i]);
  flush();
  if (held > 0) *out++ = static_cast<uint8_t>(pending);
  return out;
}

void DecodeRuns(const PrefixRuns& runs, std::array<PrefixStream, kPrefixStreams>& streams) {
  DecodeSteps<kPrefixStreams>(runs.data(), streams.data());
  for (PrefixStream& stream : streams) DecodeSteps<1>(runs.data(), &stream);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(EncodeCodes);
HWY_EXPORT(DecodeRuns);

uint8_t* EncodePrefixCodes(const PrefixCodes& codes, const uint8_t* raw, size_t size, uint8_t* out) {
  return HWY_DYNAMIC_DISPATCH(EncodeCodes)(codes, raw, size, out);
}
void DecodePrefixRuns(const PrefixRuns& runs, std::array<PrefixStream, kPrefixStreams>& streams) {
  HWY_DYNAMIC_DISPATCH(DecodeRuns)(runs, streams);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
