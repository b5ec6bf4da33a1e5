#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/planes.cc"
#include "core/simd/planes.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// How far ahead of their use values and planes are fetched.
constexpr size_t kPrefetchValues = 4096;
constexpr size_t kPrefetchPlane = 2048;

template <PlaneSplit kSplit, class D, class V = hn::Vec<D>>
HWY_INLINE V WordsOf(D, V values) {
  constexpr int kBits = 8 * sizeof(hn::TFromD<D>);
  if constexpr (kSplit == PlaneSplit::kFields) {
    return hn::Or(hn::ShiftLeft<1>(values), hn::ShiftRight<kBits - 1>(values));
  } else {
    return values;
  }
}

template <PlaneSplit kSplit, class D, class V = hn::Vec<D>>
HWY_INLINE V ValuesOf(D, V words) {
  constexpr int kBits = 8 * sizeof(hn::TFromD<D>);
  if constexpr (kSplit == PlaneSplit::kFields) {
    return hn::Or(hn::ShiftRight<1>(words), hn::ShiftLeft<kBits - 1>(words));
  } else {
    return words;
  }
}

// Whole vectors of the values from `begin` to `end`, all at least `distance` values after the first. Returns where it
// stopped.
template <typename Word, PlaneSplit kSplit, PlaneDelta kDelta>
size_t Split(size_t distance, const uint8_t* values, size_t begin, size_t end, const PlanesOut& planes) {
  const hn::ScalableTag<Word> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const PlanesOut out = planes;  // which no store can change
  const size_t lanes = hn::Lanes(d);
  size_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    const uint8_t* from = values + i * sizeof(Word);
    PrefetchAhead<kPrefetchValues>(from, lanes * sizeof(Word));
    auto words = WordsOf<kSplit>(d, LoadAt(d, from));
    if constexpr (kDelta != PlaneDelta::kNone) {
      const auto before = WordsOf<kSplit>(d, LoadAt(d, from - distance * sizeof(Word)));
      words = kDelta == PlaneDelta::kToken ? hn::Sub(words, before) : hn::Xor(words, before);
    }
    static_assert(sizeof(Word) == 1 || sizeof(Word) == 2 || sizeof(Word) == 4);
    if constexpr (sizeof(Word) == 1) {
      hn::StoreU(words, d8, out[0] + i);
    } else if constexpr (sizeof(Word) == 2) {
      hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<8>(words)), d8, out[0] + i);
      hn::StoreU(hn::TruncateTo(d8, words), d8, out[1] + i);
    } else {
      hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<24>(words)), d8, out[0] + i);
      hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<16>(words)), d8, out[1] + i);
      hn::StoreU(hn::TruncateTo(d8, hn::ShiftRight<8>(words)), d8, out[2] + i);
      hn::StoreU(hn::TruncateTo(d8, words), d8, out[3] + i);
    }
  }
  return i;
}

template <typename Word, PlaneSplit kSplit, PlaneDelta kDelta>
size_t Merge(size_t distance, const PlanesIn& planes, size_t begin, size_t end, uint8_t* values) {
  const hn::ScalableTag<Word> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const PlanesIn in = planes;
  const size_t lanes = hn::Lanes(d);
  // Each vector of values is made from one that is complete.
  if (kDelta != PlaneDelta::kNone && distance < lanes) return begin;
  size_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    uint8_t* to = values + i * sizeof(Word);
    const auto plane = [&](size_t p) HWY_ATTR {
      PrefetchAhead<kPrefetchPlane>(in[p] + i, 1);
      const auto bytes = hn::LoadU(d8, in[p] + i);
      if constexpr (sizeof(Word) == 1) {
        return bytes;
      } else {
        return hn::PromoteTo(d, bytes);
      }
    };
    auto words = plane(0);
    if constexpr (sizeof(Word) > 1) words = hn::Or(hn::ShiftLeft<8>(words), plane(1));
    if constexpr (sizeof(Word) == 4) {
      words = hn::Or(hn::ShiftLeft<16>(words), hn::Or(hn::ShiftLeft<8>(plane(2)), plane(3)));
    }
    if constexpr (kDelta != PlaneDelta::kNone) {
      const auto before = WordsOf<kSplit>(d, LoadAt(d, to - distance * sizeof(Word)));
      words = kDelta == PlaneDelta::kToken ? hn::Add(words, before) : hn::Xor(words, before);
    }
    StoreAt(ValuesOf<kSplit>(d, words), d, to);
  }
  return i;
}

// Calls `run` with the format's word, split and delta as types and constants.
template <typename Run>
size_t WithFormat(const PlaneFormat& format, Run run) {
  const auto with_delta = [&](auto word, auto split) {
    switch (format.delta) {
      case PlaneDelta::kNone: return run(word, split, std::integral_constant<PlaneDelta, PlaneDelta::kNone>());
      case PlaneDelta::kToken: return run(word, split, std::integral_constant<PlaneDelta, PlaneDelta::kToken>());
      case PlaneDelta::kXor: return run(word, split, std::integral_constant<PlaneDelta, PlaneDelta::kXor>());
    }
    return size_t{0};
  };
  const auto with_split = [&](auto word) {
    return format.split == PlaneSplit::kFields
               ? with_delta(word, std::integral_constant<PlaneSplit, PlaneSplit::kFields>())
               : with_delta(word, std::integral_constant<PlaneSplit, PlaneSplit::kBytes>());
  };
  return VisitBits(format.dtype, with_split);
}

}  // namespace

size_t SplitVectors(const PlaneFormat& format, const uint8_t* values, size_t begin, size_t end,
                    const PlanesOut& planes) {
  return WithFormat(format, [&](auto word, auto split, auto delta) {
    return Split<decltype(word), decltype(split)::value, decltype(delta)::value>(format.distance, values, begin, end,
                                                                                 planes);
  });
}

size_t MergeVectors(const PlaneFormat& format, const PlanesIn& planes, size_t begin, size_t end, uint8_t* values) {
  return WithFormat(format, [&](auto word, auto split, auto delta) {
    return Merge<decltype(word), decltype(split)::value, decltype(delta)::value>(format.distance, planes, begin, end,
                                                                                 values);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {
namespace {

// How many values at the front are as they are.
size_t Head(const PlaneFormat& format, size_t count) {
  return format.delta == PlaneDelta::kNone ? count : std::min(format.distance, count);
}

PlaneFormat WithoutDelta(PlaneFormat format) {
  format.delta = PlaneDelta::kNone;
  return format;
}

template <typename Word>
Word WordOf(PlaneSplit split, const uint8_t* value) {
  Word word;
  std::memcpy(&word, value, sizeof(Word));
  return split == PlaneSplit::kFields ? std::rotl(word, 1) : word;
}

template <typename Word>
void SplitAs(const PlaneFormat& format, const uint8_t* values, size_t begin, size_t end, const PlanesOut& planes) {
  const size_t head = Head(format, end);
  for (size_t i = begin; i < end; ++i) {
    Word word = WordOf<Word>(format.split, values + i * sizeof(Word));
    if (i >= head) {
      const Word before = WordOf<Word>(format.split, values + (i - format.distance) * sizeof(Word));
      word = static_cast<Word>(format.delta == PlaneDelta::kToken ? word - before : word ^ before);
    }
    for (size_t p = sizeof(Word); p-- > 0; word = static_cast<Word>(word >> 8)) {
      planes[p][i] = static_cast<uint8_t>(word);
    }
  }
}

template <typename Word>
void MergeAs(const PlaneFormat& format, const PlanesIn& planes, size_t begin, size_t end, uint8_t* values) {
  const size_t head = Head(format, end);
  for (size_t i = begin; i < end; ++i) {
    Word word = 0;
    for (size_t p = 0; p < sizeof(Word); ++p) word = static_cast<Word>(word << 8 | planes[p][i]);
    if (i >= head) {
      const Word before = WordOf<Word>(format.split, values + (i - format.distance) * sizeof(Word));
      word = static_cast<Word>(format.delta == PlaneDelta::kToken ? word + before : word ^ before);
    }
    if (format.split == PlaneSplit::kFields) word = std::rotr(word, 1);
    std::memcpy(values + i * sizeof(Word), &word, sizeof(Word));
  }
}

}  // namespace

namespace scalar {

void SplitPlanes(const PlaneFormat& format, const void* values, size_t begin, size_t end, const PlanesOut& planes) {
  const auto* in = static_cast<const uint8_t*>(values);
  VisitBits(format.dtype, [&](auto word) { SplitAs<decltype(word)>(format, in, begin, end, planes); });
}

void MergePlanes(const PlaneFormat& format, const PlanesIn& planes, size_t begin, size_t end, void* values) {
  auto* out = static_cast<uint8_t*>(values);
  VisitBits(format.dtype, [&](auto word) { MergeAs<decltype(word)>(format, planes, begin, end, out); });
}

}  // namespace scalar

HWY_EXPORT(SplitVectors);
HWY_EXPORT(MergeVectors);

void SplitPlanes(const PlaneFormat& format, const void* values, size_t count, const PlanesOut& planes) {
  const auto* in = static_cast<const uint8_t*>(values);
  const auto range = [&](const PlaneFormat& own, size_t begin, size_t end) {
    const size_t done = HWY_DYNAMIC_DISPATCH(SplitVectors)(own, in, begin, end, planes);
    scalar::SplitPlanes(own, values, done, end, planes);
  };
  const size_t head = Head(format, count);
  range(WithoutDelta(format), 0, head);
  range(format, head, count);
}

void MergePlanes(const PlaneFormat& format, const PlanesIn& planes, size_t count, void* values) {
  auto* out = static_cast<uint8_t*>(values);
  const auto range = [&](const PlaneFormat& own, size_t begin, size_t end) {
    const size_t done = HWY_DYNAMIC_DISPATCH(MergeVectors)(own, planes, begin, end, out);
    scalar::MergePlanes(own, planes, done, end, values);
  };
  const size_t head = Head(format, count);
  range(WithoutDelta(format), 0, head);
  range(format, head, count);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
