#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/channel_classes.cc"
#include "core/simd/channel_classes.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <bit>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using VI = hn::Vec<DI>;

// Below, ForEachVector may do a channel twice: what is read is never what is written.

// ClassOf of variances, none of which is NaN.
HWY_INLINE VI ClassesOf(VF ratio) {
  const DI di;
  const VI bits = hn::BitCast(di, ratio);
  const VI mantissa = hn::And(bits, hn::Set(di, 0x7fffff));
  const VI octave = hn::Sub(hn::ShiftRight<23>(bits), hn::Set(di, 127));
  // True is -1.
  const auto reaches = [&](float least) HWY_ATTR {
    const int32_t limit = static_cast<int32_t>(std::bit_cast<uint32_t>(least) & 0x7fffffu);
    return hn::VecFromMask(di, hn::Gt(mantissa, hn::Set(di, limit - 1)));
  };
  const VI of = hn::Sub(hn::Sub(hn::Add(octave, octave), reaches(0x1.306fep+0f)), reaches(0x1.ae89fap+0f));
  return hn::Min(hn::Max(of, hn::Set(di, kMinClass)), hn::Set(di, kMaxClass));
}

// scalar::BitsOf.
HWY_INLINE VF BitsOf(VI of) {
  const DI di;
  const VI quarters = hn::Max(hn::Add(of, hn::Set(di, 5)), hn::Zero(di));
  return hn::Mul(hn::ConvertTo(DF(), quarters), hn::Set(DF(), 0.25f));
}

// MeanShift of classes.
HWY_INLINE VI MeanShifts(VI of, size_t tokens) {
  const DI di;
  const auto less = static_cast<int32_t>(13 - 2 * (std::bit_width(tokens) - 1));
  const VI quarters = hn::Max(hn::Add(of, hn::Set(di, less)), hn::Zero(di));
  return hn::Min(hn::ShiftRight<2>(quarters), hn::Set(di, 20));
}

HWY_INLINE VF PowersBelowOne(VI shift) {
  return hn::BitCast(DF(), hn::ShiftLeft<23>(hn::Sub(hn::Set(DI(), 127), shift)));
}

// BitsBeyondZero of numbers.
HWY_INLINE VF BitsOfNumbers(VI number) {
  const DF df;
  const DI di;
  const VI magnitude = hn::Abs(number);
  // Without the bit below its highest one a number is not rounded up to the next power of two.
  const VF rounded = hn::ConvertTo(df, hn::AndNot(hn::ShiftRight<1>(magnitude), magnitude));
  const VI width = hn::Sub(hn::ShiftRight<23>(hn::BitCast(di, rounded)), hn::Set(di, 126));
  const VF bits = hn::Add(hn::Set(df, 1), hn::Mul(hn::Set(df, 1.5f), hn::ConvertTo(df, width)));
  return hn::IfThenZeroElse(hn::RebindMask(df, hn::Eq(number, hn::Zero(di))), bits);
}

}  // namespace

void ClassesOfVariancesAll(const ChannelSpan& span, int32_t* classes, float* saved) {
  if (span.channels < kLanes) return scalar::ClassesOfVariances(span, classes, saved);
  const DF df;
  const VF tokens = hn::Set(df, static_cast<float>(span.tokens));
  ForEachVector(span.channels, [&](size_t c) HWY_ATTR {
    const VF variance = hn::LoadU(df, span.variances + c), mean = hn::LoadU(df, span.means + c);
    const VI of = ClassesOf(variance);
    const VI without = ClassesOf(hn::Add(variance, hn::Mul(mean, mean)));
    const VF gain = hn::Mul(tokens, hn::Sub(BitsOf(without), BitsOf(of)));
    const VF steps = hn::Mul(hn::Add(mean, mean), PowersBelowOne(MeanShifts(of, span.tokens)));
    const VF cost = hn::Add(hn::Set(df, 2), BitsOfNumbers(hn::ConvertTo(DI(), steps)));
    hn::StoreU(of, DI(), classes + c);
    hn::StoreU(hn::Sub(gain, cost), df, saved + c);
  });
}

void ClassesAboutMeansAll(const ChannelSpan& span, const int32_t* coded, int32_t* classes) {
  if (span.channels < kLanes) return scalar::ClassesAboutMeans(span, coded, classes);
  const DF df;
  ForEachVector(span.channels, [&](size_t c) HWY_ATTR {
    const VF mean = hn::LoadU(df, span.means + c);
    const VF own = hn::ConvertTo(df, hn::LoadU(DI(), coded + c));
    const VF off = hn::Mul(hn::Sub(hn::Add(mean, mean), own), hn::Set(df, 0.5f));
    const VI of = ClassesOf(hn::Add(hn::LoadU(df, span.variances + c), hn::Mul(off, off)));
    hn::StoreU(of, DI(), classes + c);
  });
}

void ChooseMeansAll(const ChannelSpan& span, const int32_t* classes, const int32_t* expected, int32_t* coded,
                    float* bits) {
  if (span.channels < kLanes) return scalar::ChooseMeans(span, classes, expected, coded, bits);
  const DF df;
  const DI di;
  const VF one = hn::Set(df, 1);
  const VF of_all = hn::Set(df, static_cast<float>(span.tokens) * 0.18f);
  ForEachVector(span.channels, [&](size_t c) HWY_ATTR {
    const VF mean = hn::LoadU(df, span.means + c);
    const VF own = hn::Add(mean, mean);
    const VF squared = hn::Div(of_all, hn::Add(hn::LoadU(df, span.variances + c), hn::Set(df, 0.35f)));
    const VI usual = expected != nullptr ? hn::LoadU(di, expected + c) : hn::Zero(di);
    const VI shift = MeanShifts(hn::LoadU(di, classes + c), span.tokens);
    const VF off_usual = hn::Sub(own, hn::ConvertTo(df, usual));
    const VI steps = Nearest(hn::Mul(off_usual, PowersBelowOne(shift)));
    const VI nearest = hn::Add(usual, hn::Shl(steps, shift));
    const VF off_nearest = hn::Sub(own, hn::ConvertTo(df, nearest));
    const auto cost = [&](VF off) HWY_ATTR { return hn::Mul(hn::Mul(squared, off), off); };
    const VF of_usual = hn::Add(cost(off_usual), one);
    const VF of_nearest = hn::Add(cost(off_nearest), hn::Add(one, BitsOfNumbers(steps)));
    const auto stays = hn::RebindMask(di, hn::Le(of_usual, of_nearest));
    hn::StoreU(hn::IfThenElse(stays, usual, nearest), di, coded + c);
    hn::StoreU(hn::Min(of_usual, of_nearest), df, bits + c);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(ClassesOfVariancesAll);
HWY_EXPORT(ClassesAboutMeansAll);
HWY_EXPORT(ChooseMeansAll);

void ClassesOfVariances(const ChannelSpan& span, int32_t* classes, float* saved) {
  HWY_DYNAMIC_DISPATCH(ClassesOfVariancesAll)(span, classes, saved);
}
void ClassesAboutMeans(const ChannelSpan& span, const int32_t* coded, int32_t* classes) {
  HWY_DYNAMIC_DISPATCH(ClassesAboutMeansAll)(span, coded, classes);
}
void ChooseMeans(const ChannelSpan& span, const int32_t* classes, const int32_t* expected, int32_t* coded,
                 float* bits) {
  HWY_DYNAMIC_DISPATCH(ChooseMeansAll)(span, classes, expected, coded, bits);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
