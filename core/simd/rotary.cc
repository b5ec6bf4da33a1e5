#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/rotary.cc"
#include "core/simd/rotary.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/half-inl.h"
#include "core/simd/rotary_angle.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// The steps of scalar::CosSin.
HWY_INLINE void CosSinOf(VU phase, VF& cosine, VF& sine) {
  const DF df;
  const DI di;
  const DU du;
  const auto quarter = hn::ShiftRight<30>(hn::Add(phase, hn::Set(du, internal::kEighthTurn)));
  const auto rest = hn::BitCast(di, hn::Sub(phase, hn::ShiftLeft<30>(quarter)));
  const VF x = hn::Mul(hn::ConvertTo(df, rest), hn::Set(df, internal::kRadians));
  const VF z = hn::Mul(x, x);
  const auto horner = [&](const auto& terms) HWY_ATTR {
    VF sum = hn::Set(df, terms[0]);
    for (size_t i = 1; i < std::size(terms); ++i) sum = hn::Add(hn::Mul(sum, z), hn::Set(df, terms[i]));
    return sum;
  };
  const VF s = hn::Mul(horner(internal::kSineTerms), x);
  const VF c = horner(internal::kCosineTerms);
  const auto odd = hn::Ne(hn::And(quarter, hn::Set(du, 1)), hn::Zero(du));
  const VF first = hn::IfThenElse(hn::RebindMask(df, odd), s, c);
  const VF second = hn::IfThenElse(hn::RebindMask(df, odd), c, s);
  // Quarters 1 and 2 have negative cosines, 2 and 3 negative sines.
  const auto sign_of = [&](VU two)
                           HWY_ATTR { return hn::BitCast(df, hn::ShiftLeft<30>(hn::And(two, hn::Set(du, 2)))); };
  cosine = hn::Xor(first, sign_of(hn::Add(quarter, hn::Set(du, 1))));
  sine = hn::Xor(second, sign_of(quarter));
}

}  // namespace

void CosSinAll(const uint32_t* phases, size_t count, float* cosines, float* sines) {
  const DF df;
  const DU du;
  if (count < kLanes) return scalar::CosSin(phases, count, cosines, sines);
  for (size_t i = 0; i < count; i += kLanes) {
    const size_t at = HWY_MIN(i, count - kLanes);
    VF cosine, sine;
    CosSinOf(hn::LoadU(du, phases + at), cosine, sine);
    hn::StoreU(cosine, df, cosines + at);
    hn::StoreU(sine, df, sines + at);
  }
}

template <RotaryPairs kPairs>
HWY_INLINE void TurnRow(const float* cosines, size_t pairs, bool forward, float* row) {
  const DF df;
  const VF sign = hn::Set(df, forward ? 0.0f : -0.0f);
  for (size_t i = 0; i < pairs; i += kLanes) {
    const VF c = hn::LoadU(df, cosines + i);
    const VF s = hn::Xor(hn::LoadU(df, cosines + pairs + i), sign);
    VF a, b;
    if constexpr (kPairs == RotaryPairs::kHalf) {
      a = hn::LoadU(df, row + i);
      b = hn::LoadU(df, row + pairs + i);
    } else {
      hn::LoadInterleaved2(df, row + 2 * i, a, b);
    }
    const VF turned_a = hn::Sub(hn::Mul(a, c), hn::Mul(b, s));
    const VF turned_b = hn::Add(hn::Mul(b, c), hn::Mul(a, s));
    if constexpr (kPairs == RotaryPairs::kHalf) {
      hn::StoreU(turned_a, df, row + i);
      hn::StoreU(turned_b, df, row + pairs + i);
    } else {
      hn::StoreInterleaved2(turned_a, turned_b, df, row + 2 * i);
    }
  }
}

void TurnRowsAll(const RotaryTable& table, size_t first_token, RotaryPairs pairs, RotaryTurn turn, float* rows,
                 size_t count, size_t stride) {
  if (table.pairs() % kLanes != 0) return scalar::TurnRows(table, first_token, pairs, turn, rows, count, stride);
  const bool forward = turn == RotaryTurn::kForward;
  for (size_t r = 0; r < count; ++r) {
    const float* const cosines = table.row(first_token + r);
    if (pairs == RotaryPairs::kHalf) {
      TurnRow<RotaryPairs::kHalf>(cosines, table.pairs(), forward, rows + r * stride);
    } else {
      TurnRow<RotaryPairs::kInterleaved>(cosines, table.pairs(), forward, rows + r * stride);
    }
  }
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(CosSinAll);
HWY_EXPORT(TurnRowsAll);

void CosSin(const uint32_t* phases, size_t count, float* cosines, float* sines) {
  HWY_DYNAMIC_DISPATCH(CosSinAll)(phases, count, cosines, sines);
}

void TurnRows(const RotaryTable& table, size_t first_token, RotaryPairs pairs, RotaryTurn turn, float* rows,
              size_t count, size_t stride) {
  HWY_DYNAMIC_DISPATCH(TurnRowsAll)(table, first_token, pairs, turn, rows, count, stride);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
