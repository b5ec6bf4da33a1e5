#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/prefix_codes.cc"
#include "core/simd/prefix_codes.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/simd/cpu_features.h"
#include "core/simd/symbols-inl.h"

// Compiled for each instruction set also where nothing is a vector, because from AVX2 on a shift takes one step, by
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

// How many steps of kCodesAtOnce runs the stream has room for, whatever they are: each moves on by up to 7 bytes, and
// reads the 8 bytes that follow the 8 it began with.
HWY_INLINE size_t StepsWithin(const PrefixStream& stream) {
  const auto in = static_cast<size_t>(stream.in_end - stream.in);
  const auto out = static_cast<size_t>(stream.out_end - stream.out);
  return in < 16 ? 0 : std::min((in - 9) / 7, out / (kCodesAtOnce * kRunBytes));
}

template <size_t kCount>
HWY_INLINE size_t StepsWithinAll(const PrefixStream* streams) {
  size_t steps = StepsWithin(streams[0]);
  for (size_t k = 1; k < kCount; ++k) steps = std::min(steps, StepsWithin(streams[k]));
  return steps;
}

// A stream whose next 57 bits or more are at hand.
struct Cursor {
  uint64_t bits;
  uint64_t sum;       // of the runs that were taken since the last Refill, and of the bits that were missing then
  const uint8_t* in;  // the bytes after the 64 bits that `bits` held before those
  uint8_t* out;       // where the first of these runs is

  explicit HWY_INLINE Cursor(const PrefixStream& stream)
      : bits(LoadBits(stream.in) >> stream.bit), sum(stream.bit), in(stream.in + 8), out(stream.out) {}
  HWY_INLINE void Leave(PrefixStream& stream) const {
    stream.in = in - 8;
    stream.bit = static_cast<uint32_t>(sum);
    stream.out = out;
  }

  HWY_INLINE void Take(const uint64_t* runs) {
    const uint64_t run = runs[bits % (size_t{1} << kMaxPrefixBits)];
    bits >>= run & 63;
    const auto symbols = static_cast<uint32_t>(run >> 16);
    std::memcpy(out + (sum >> 56), &symbols, sizeof(symbols));
    sum += run;
  }
  // After one run or more. The load does not wait for the runs: it is at hand before `bits` is.
  HWY_INLINE void Refill() {
    bits |= LoadBits(in) << (-sum & 63);
    in += sum >> 3 & 7;
    out += sum >> 56;
    sum &= 7;
  }
};

template <size_t kCount, size_t... k>
HWY_INLINE void DecodeSteps(const uint64_t* runs, PrefixStream* streams, std::index_sequence<k...>) {
  while (size_t steps = StepsWithinAll<kCount>(streams)) {
    Cursor cursors[kCount] = {Cursor(streams[k])...};
    for (; steps > 0; --steps) {
#pragma GCC unroll 5
      for (size_t code = 0; code < kCodesAtOnce; ++code) (cursors[k].Take(runs), ...);
      (cursors[k].Refill(), ...);
    }
    (cursors[k].Leave(streams[k]), ...);
  }
}

// Appends bits to bytes.
struct BitsOut {
  uint8_t* out;
  uint64_t pending = 0;
  uint64_t held = 0;

  HWY_INLINE void Append(uint64_t bits, uint64_t length) {
    pending |= bits << held;
    held += length;
  }
  // Leaves fewer than 8 bits pending, of at most 63.
  HWY_INLINE void Flush() {
    std::memcpy(out, &pending, sizeof(pending));
    out += held / 8;
    pending >>= held & ~uint64_t{7};
    held %= 8;
  }
};

#if KVC_TARGET_AVX512

constexpr size_t kAtOnce = 64;
constexpr size_t kQuads = kAtOnce / 4;

// For each byte value its code and, from bit kMaxPrefixBits on, the length of it: the lower bytes, then the upper ones.
struct CodeBytes {
  HWY_ALIGN uint8_t bytes[2][256];

  explicit CodeBytes(const PrefixCodes& codes) {
    for (size_t s = 0; s < 256; ++s) {
      const uint64_t code = codes.bits[s] | codes.lengths[s] << kMaxPrefixBits;
      bytes[0][s] = static_cast<uint8_t>(code);
      bytes[1][s] = static_cast<uint8_t>(code >> 8);
    }
  }
};

// The codes of each four neighbours as one.
struct Quads {
  HWY_ALIGN uint64_t bits[kQuads];
  HWY_ALIGN uint64_t lengths[kQuads];

  KVC_VBMI HWY_INLINE void Make(const CodeBytes& table, const uint8_t* raw) {
    const Symbols symbols(raw);
    const __m512i low = symbols.LookUp(table.bytes[0]);
    const __m512i high = symbols.LookUp(table.bytes[1]);
    Merge(_mm512_unpacklo_epi8(low, high), 0);
    Merge(_mm512_unpackhi_epi8(low, high), kQuads / 2);
  }

 private:
  // In lanes of twice the width the second code goes behind the first, twice.
  KVC_VBMI HWY_INLINE void Merge(__m512i codes, size_t first) {
    constexpr int kFirstAndSecond = 0xf8;  // a | (b & c)
    const __m512i lowest16 = _mm512_set1_epi32(0xffff);
    const __m512i lowest32 = _mm512_set1_epi64(0xffffffff);
    const __m512i of_one = _mm512_srli_epi16(codes, kMaxPrefixBits);
    const __m512i one = _mm512_and_si512(codes, _mm512_set1_epi16((1 << kMaxPrefixBits) - 1));
    const __m512i of_first = _mm512_and_si512(of_one, lowest16);
    const __m512i second = _mm512_sllv_epi32(_mm512_srli_epi32(one, 16), of_first);
    const __m512i two = _mm512_ternarylogic_epi32(second, one, lowest16, kFirstAndSecond);
    const __m512i of_two = _mm512_add_epi32(of_first, _mm512_srli_epi32(of_one, 16));
    const __m512i others = _mm512_sllv_epi64(_mm512_srli_epi64(two, 32), _mm512_and_si512(of_two, lowest32));
    _mm512_store_si512(bits + first, _mm512_ternarylogic_epi32(others, two, lowest32, kFirstAndSecond));
    _mm512_store_si512(lengths + first, _mm512_sad_epu8(of_one, _mm512_setzero_si512()));
  }
};

// Appends the codes of whole vectors, and returns how many bytes these are.
KVC_VBMI size_t EncodeQuads(const PrefixCodes& codes, const uint8_t* raw, size_t size, BitsOut& to) {
  if (size < kAtOnce) return 0;
  const CodeBytes table(codes);
  BitsOut out = to;
  // The next ones are made in front of those that are appended, so that a CPU need not look ahead to find them.
  Quads quads[2];
  quads[0].Make(table, raw);
  size_t at = 0;
  for (size_t turn = 0; size - at >= kAtOnce; at += kAtOnce, turn ^= 1) {
    if (size - at >= 2 * kAtOnce) quads[turn ^ 1].Make(table, raw + at + kAtOnce);
#pragma GCC unroll 16
    for (size_t k = 0; k < kQuads; ++k) {
      out.Append(quads[turn].bits[k], quads[turn].lengths[k]);
      out.Flush();
    }
  }
  to = out;
  return at;
}

#endif  // KVC_TARGET_AVX512

}  // namespace

uint8_t* EncodeCodes(const PrefixCodes& codes, const uint8_t* raw, size_t size, uint8_t* out) {
  BitsOut bits{out};
  size_t i = 0;
#if KVC_TARGET_AVX512
  if (PermutesBytes()) i = EncodeQuads(codes, raw, size, bits);
#endif
  const auto append = [&](uint8_t symbol) HWY_ATTR { bits.Append(codes.bits[symbol], codes.lengths[symbol]); };
  for (; i + kCodesAtOnce <= size; i += kCodesAtOnce) {
#pragma GCC unroll 5
    for (size_t k = 0; k < kCodesAtOnce; ++k) append(raw[i + k]);
    bits.Flush();
  }
  for (; i < size; ++i) append(raw[i]);
  bits.Flush();
  if (bits.held > 0) *bits.out++ = static_cast<uint8_t>(bits.pending);
  return bits.out;
}

void DecodeRuns(const PrefixRuns& runs, std::array<PrefixStream, kPrefixStreams>& streams) {
  DecodeSteps<kPrefixStreams>(runs.data(), streams.data(), std::make_index_sequence<kPrefixStreams>());
  for (PrefixStream& stream : streams) DecodeSteps<1>(runs.data(), &stream, std::make_index_sequence<1>());
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {
namespace {

// All runs that begin with one, which they overwrite in part.
struct RunFiller {
  PrefixRuns& runs;
  const PrefixCodes& codes;
  const uint64_t most;                                // symbols of a run
  std::array<uint8_t, 256> symbols;                   // by length
  std::array<size_t, kMaxPrefixBits + 1> up_to = {};  // how many have codes of at most so many bits

  RunFiller(const PrefixCodes& from, PrefixRuns& to, uint64_t most_symbols)
      : runs(to), codes(from), most(most_symbols) {
    for (const uint64_t length : codes.lengths) ++up_to[length];
    up_to[0] = 0;  // symbols without codes are not counted
    for (size_t length = 1; length <= kMaxPrefixBits; ++length) up_to[length] += up_to[length - 1];
    auto next = up_to;  // where those of the length after this one go
    for (size_t s = 0; s < codes.lengths.size(); ++s) {
      if (codes.lengths[s] > 0) symbols[next[codes.lengths[s] - 1]++] = static_cast<uint8_t>(s);
    }
  }

  // Of a run of `count` symbols, whose codes are the `length` bits `bits`.
  void Fill(uint64_t bits, uint64_t length, uint64_t count, uint64_t bytes) {
    for (size_t i = 0; i < up_to[kMaxPrefixBits - length]; ++i) {
      const uint8_t s = symbols[i];
      const uint64_t next = bits | codes.bits[s] << length;
      const uint64_t next_length = length + codes.lengths[s];
      const uint64_t next_bytes = bytes | uint64_t{s} << 8 * count;
      const uint64_t run = (count + 1) << 56 | next_bytes << 16 | next_length;
      for (uint64_t slot = next; slot < runs.size(); slot += uint64_t{1} << next_length) runs[slot] = run;
      if (count + 1 < most) Fill(next, next_length, count + 1, next_bytes);
    }
  }
};

}  // namespace

HWY_EXPORT(EncodeCodes);
HWY_EXPORT(DecodeRuns);

uint8_t* EncodePrefixCodes(const PrefixCodes& codes, const uint8_t* raw, size_t size, uint8_t* out) {
  return HWY_DYNAMIC_DISPATCH(EncodeCodes)(codes, raw, size, out);
}
void MakePrefixRuns(const PrefixCodes& codes, PrefixRuns& runs, size_t most) {
  RunFiller(codes, runs, most).Fill(0, 0, 0, 0);
}
void DecodePrefixRuns(const PrefixRuns& runs, std::array<PrefixStream, kPrefixStreams>& streams) {
  HWY_DYNAMIC_DISPATCH(DecodeRuns)(runs, streams);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
