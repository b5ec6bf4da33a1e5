#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <span>
#include <vector>

#include "core/base/half.h"
#include "core/codec/tensor/transform/basis.h"
#include "core/codec/tensor/transform/block.h"
#include "core/codec/tensor/transform/header.h"
#include "core/codec/tensor/transform/reconstruction.h"
#include "core/codec/tensor/transform/side.h"
#include "core/codec/tensor/transform/statistics.h"
#include "core/codec/tensor/transform/strip.h"
#include "core/codec/tensor/turn_gain.h"
#include "core/simd/segment_values.h"
#include "core/simd/token_meter.h"
#include "core/simd/trellis.h"

namespace kvcompress {
namespace {

using simd::kStripChannels;

// The upper part of a value that its table, of this reach, does not have.
struct Escape {
  int32_t high;
  int32_t reach;
};

// Tokens of a strip that have one step and one size.
struct StripPart {
  size_t first_token;
  simd::StripTables coding;
  simd::StripSpan values;
};

// Buffers that a thread uses again for every block.
struct Scratch {
  std::vector<float> values;
  std::vector<float> strip;  // with fewer channels than others
  std::vector<StripPart> parts;
  std::vector<int32_t> quantized;
  std::vector<simd::TrellisDecisions> decisions;
  std::vector<uint32_t> escaped;  // which channels of each token
  std::vector<uint8_t> symbols;
  std::vector<int32_t> low;  // the values of spans of strips that have low bits
  std::vector<Escape> escapes;
  SegmentStatistics statistics;
  simd::RotaryTable turns;

  static Scratch& OfThread() {
    thread_local Scratch scratch;
    return scratch;
  }
};

class Encoder {
 public:
  Encoder(const TransformFormat& format, bool sinks, float step, const TransformInput& input, bool needs_words = true)
      : format_(format),
        input_(input),
        sinks_(sinks),
        needs_words_(needs_words),
        step_(step),
        tables_(ChannelTables(format.trellis)),
        basis_(format.artifact.get(), input.layout),
        scratch_(Scratch::OfThread()) {}

  // Takes values in units, and raises the step where points would not reach the largest one. False where one is
  // refused.
  bool Load() {
    scratch_.values.resize(input_.count);
    is_nothing_ = IsNothing();
    if (is_nothing_) {
      std::ranges::fill(scratch_.values, 0.0f);
      return true;
    }
    const float largest = LoadInUnits();
    if (!(largest <= std::min(kMaxTransformable, MaxFinite(input_.dtype)))) return false;
    constexpr float kReach = 0x1p-21f;
    const float step = std::clamp(std::max(step_, basis_.LargestCoefficient(largest) * kReach), kMinStep, kMaxStep);
    if (step != step_) {
      step_ = step;
      LoadInUnits();
    }
    basis_.GatherHeads(input_.count, scratch_.values.data());
    return true;
  }

  // After Load. False where it takes too much room. `decoded`, if not null, is set to what the block will be decoded
  // to.
  bool Encode(std::byte* side, std::byte* words, std::byte* decoded, TransformSizes& sizes) {
    const size_t room = MaxSideBytes(input_.count, DTypeSize(input_.dtype));
    Reconstruction reconstruction(format_, input_.layout, step_, basis_, input_.dtype, decoded);
    reconstruction_ = decoded != nullptr ? &reconstruction : nullptr;
    std::vector<Segment> segments = CutIntoSegments(input_.layout, input_.count);
    std::byte* const text = WriteHeader({BlockForm::kCoded, step_, input_.layout}, format_.artifact != nullptr, side);
    const auto header_bytes = static_cast<size_t>(text - side);
    SideWriter writer(MutableByteSpan(text, room - header_bytes));
    SideModels models;
    scratch_.escapes.clear();
    scratch_.symbols.clear();
    scratch_.low.clear();
    Describe(segments, [&](const Segment* before, Segment& segment, float* values) {
      models.CodeSegment(writer, before, segment);
      CountSegment(segment, sizes.classes);
      for (size_t c = 0; c < segment.channels; c += kStripChannels) QuantizeStrip(segment, c, values);
      if (decoded != nullptr) reconstruction.Finish(segment, scratch_.turns, values);
    });
    for (Escape& escape : scratch_.escapes) models.CodeEscape(writer, escape.reach, escape.high);
    const std::optional<size_t> text_bytes = writer.Finish();
    sizes.side = header_bytes + text_bytes.value_or(0);
    sizes.rotary = gain_;
    sizes.step = step_;
    const size_t stored = input_.count * DTypeSize(input_.dtype);
    if (!needs_words_ && text_bytes && sizes.side + MostWordBytes(sizes.classes) < stored) return true;
    sizes.words = EncodeSymbols(segments, words);
    return text_bytes && sizes.words > 0 && sizes.side + sizes.words < stored;
  }

  // After Load.
  void Count(ClassCounts& counts) {
    std::vector<Segment> segments = CutIntoSegments(input_.layout, input_.count);
    Describe(segments,
             [&counts](const Segment*, const Segment& segment, const float*) { CountSegment(segment, counts); });
  }

 private:
  static void CountSegment(const Segment& segment, ClassCounts& counts) {
    counts.channels += static_cast<double>(segment.channels);
    ForEachSpan(segment, [&](const TokenSpan& span) {
      for (const int of : segment.classes) {
        counts.Add(std::clamp(of + span.class_shift, kMinClass, kMaxClass), static_cast<double>(span.end - span.begin));
      }
    });
  }

  // Visits all segments, one after the other: the one to expect the segment from, or null, the segment, of which all is
  // known, and what is to be quantized.
  template <typename Visit>
  void Describe(std::vector<Segment>& segments, Visit visit) {
    const Segment* before = nullptr;
    const bool can_turn = input_.layout.RotaryDims(format_) > 0;
    for (Segment& segment : segments) {
      float* const values = scratch_.values.data() + segment.first;
      Segment expected;
      if (basis_.Changes(segment)) {
        expected = Change(segment, values);
        before = &expected;
      } else if (segment.is_whole && can_turn) {
        TurnBack(segment, values);
      }
      DescribeSegment({format_, sinks_, values, before}, segment, scratch_.statistics);
      visit(before, segment, values);
      before = &segment;
    }
  }

  // The room that values of these classes take at most: the rarest symbols each, and their low bits.
  size_t MostWordBytes(const ClassCounts& classes) const {
    constexpr double kMostBits = simd::kRansBits + 0.01;  // a state loses next to nothing with what is rare
    double bits = 0;
    for (size_t i = 0; i < ClassCounts::kClasses; ++i) {
      bits += classes.values[i] * (kMostBits + CodedClass(static_cast<int>(i) + kMinClass).low_bits);
    }
    return static_cast<size_t>(bits / 8) + 1 + simd::kMostTokenBytes + 4 * LanesFor(input_.count);
  }

  // Returns the largest magnitude as it is.
  float LoadInUnits() { return LoadInUnits(0, input_.count); }
  float LoadInUnits(size_t first, size_t count) {
    return simd::LoadScaled(input_.dtype, input_.values + first * DTypeSize(input_.dtype), count,
                            1 / UnitOf(format_.trellis, step_), scratch_.values.data() + first);
  }

  // Whether all values, and their squares beside any number that is compared or added to them, are so small that what
  // is coded is the same as of zeros. What is left to them is whether to turn back.
  bool IsNothing() const {
    if (!basis_.is_none() || !(step_ >= kMinStep && step_ <= kMaxStep)) return false;
    const std::optional<float> small = simd::LargestOfSmall(input_.dtype, input_.values, input_.count);
    return small && *small < 0x1p-40f * UnitOf(format_.trellis, step_);
  }

  // Makes coefficients of a segment's values, and returns what is expected of these.
  Segment Change(Segment& segment, float* values) {
    segment.turned = basis_.turns();
    if (segment.turned) {
      TurnSegment(format_, input_.layout, segment, simd::RotaryTurn::kBack, scratch_.turns, values);
    }
    const float unit = UnitOf(format_.trellis, step_);
    basis_.ToCoefficients(segment, unit, values);
    basis_.Truncate(segment, format_.ranks, sinks_ ? SinksOf(format_, segment) : 0, values);
    return basis_.Expected(segment, unit);
  }

  // Undoes the rotation of a segment unless that makes channels no narrower, as the block's first one decides.
  void TurnBack(Segment& segment, float* values) {
    const size_t channels = segment.channels;
    const auto turn_back = [&](size_t at, size_t n, float* part) {
      if (is_nothing_ && at > 0) return;  // zeros
      TurnTokens(format_, input_.layout, segment, at / channels, n / channels, simd::RotaryTurn::kBack, scratch_.turns,
                 part);
    };
    if (!first_gain_) {
      const size_t sample = std::min(kTurnedTokens, segment.tokens) * channels;
      if (is_nothing_) LoadInUnits(segment.first, sample);
      first_gain_ = TurnBackIfNarrower(values, segment.count(), channels, turn_back);
      if (is_nothing_) std::fill_n(values, sample, 0.0f);
    } else if (first_gain_->turned > 0 && !is_nothing_) {
      turn_back(0, segment.count(), values);
    }
    segment.turned = first_gain_->turned > 0;
    const double share = static_cast<double>(segment.count()) / static_cast<double>(first_gain_->values);
    gain_.Merge({segment.count(), segment.turned ? segment.count() : 0, first_gain_->bits * share});
  }

  void QuantizeStrip(const Segment& segment, size_t first_channel, float* values) {
    const std::span<const int> classes = StripClasses(segment, first_channel);
    const size_t channels = classes.size();
    const std::array<float, kStripChannels> means = MeansOf(segment, first_channel, channels);
    simd::StripSpan strip{.values = values + first_channel,
                          .stride = segment.channels,
                          .tokens = segment.tokens,
                          .means = means.data(),
                          .factor = 1};
    Reconstruction::Scale scale{.unit = 0};
    simd::PlacedValues placed = {};
    if (reconstruction_ != nullptr) {
      scale = reconstruction_->ScaleOf(segment, first_channel, channels);
      placed = reconstruction_->PlaceOf(segment, first_channel, values);
      strip.placing = {placed, scale.unit, scale.means.data()};
    }
    if (channels == kStripChannels) return QuantizeSpans(segment, classes, strip);
    PadStrip(strip, channels);
    QuantizeSpans(segment, classes, strip);
    if (reconstruction_ == nullptr) return;
    for (size_t t = 0; t < segment.tokens; ++t) {
      simd::NarrowLimited(placed.dtype, scratch_.strip.data() + t * kStripChannels, channels, placed.After(t).first);
    }
  }

  // Copies the values of a strip that has fewer channels, for those that are not there zeros, to be decoded in place.
  void PadStrip(simd::StripSpan& strip, size_t channels) {
    scratch_.strip.assign(strip.tokens * kStripChannels, 0.0f);
    for (size_t t = 0; t < strip.tokens; ++t) {
      std::copy_n(strip.values + t * strip.stride, channels, scratch_.strip.data() + t * kStripChannels);
    }
    strip.values = scratch_.strip.data();
    strip.stride = kStripChannels;
    strip.placing.values = {DType::kF32, scratch_.strip.data(), kStripChannels};
  }

  void QuantizeSpans(const Segment& segment, std::span<const int> classes, const simd::StripSpan& strip) {
    std::vector<StripPart>& parts = scratch_.parts;
    parts.clear();
    ForEachSpan(segment, [&](const TokenSpan& span) {
      StripPart part{span.begin, StripCoding(tables_, classes, span.class_shift), strip};
      part.values.values += span.begin * strip.stride;
      part.values.tokens = span.end - span.begin;
      part.values.factor = static_cast<float>(1 << span.step_shift);
      part.values.placing.unit = std::ldexp(strip.placing.unit, -span.step_shift);
      if (reconstruction_ != nullptr) part.values.placing.values = strip.placing.values.After(span.begin);
      parts.push_back(part);
    });
    scratch_.quantized.resize(strip.tokens * kStripChannels);
    scratch_.escaped.resize(strip.tokens);
    const size_t at = scratch_.symbols.size();
    scratch_.symbols.resize(at + strip.tokens * kStripChannels);
    const auto coded = [&](const StripPart& part) {
      const size_t first = part.first_token * kStripChannels;
      return simd::CodedSymbols{scratch_.symbols.data() + at + first, scratch_.escaped.data() + part.first_token,
                                scratch_.quantized.data() + first};
    };
    if (format_.trellis) {
      scratch_.decisions.resize(strip.tokens);
      simd::TrellisCosts costs;
      for (const StripPart& part : parts) {
        simd::TrellisForward(part.values, costs, scratch_.decisions.data() + part.first_token);
      }
      simd::TrellisEnds ends = simd::CheapestEnds(costs);
      for (size_t i = parts.size(); i-- > 0;) {
        const StripPart& part = parts[i];
        simd::TrellisBack(part.coding, part.values, scratch_.decisions.data() + part.first_token, ends, coded(part));
      }
    } else {
      for (const StripPart& part : parts) simd::PlainSymbols(part.coding, part.values, coded(part));
    }
    for (const StripPart& part : parts) Keep(part.coding, part.values.tokens, coded(part));
  }

  // What symbols leave out: low bits, and escapes.
  void Keep(const simd::StripTables& coding, size_t tokens, const simd::CodedSymbols& coded) {
    if (coding.has_low_bits) scratch_.low.insert(scratch_.low.end(), coded.k, coded.k + tokens * kStripChannels);
    for (size_t t = 0; t < tokens; ++t) {
      for (uint32_t left = coded.escapes[t]; left != 0; left &= left - 1) {
        const auto c = static_cast<size_t>(std::countr_zero(left));
        const size_t at = t * kStripChannels + c;
        const size_t quantizer = (coded.symbols[at] & simd::kOddQuantizer) != 0 ? 1 : 0;
        scratch_.escapes.push_back({coded.k[at] >> coding.low_bits[c], coding[c].reach[quantizer]});
      }
    }
  }

  // Of the channels of a strip, in units.
  static std::array<float, kStripChannels> MeansOf(const Segment& segment, size_t first_channel, size_t channels) {
    std::array<float, kStripChannels> means = {};
    for (size_t c = 0; c < channels; ++c) means[c] = static_cast<float>(segment.means[first_channel + c]) * 0.5f;
    return means;
  }

  // The entropy coder goes from the last symbol to the first.
  size_t EncodeSymbols(const std::vector<Segment>& segments, std::byte* words) {
    const size_t room = MaxWordBytes(input_.count, DTypeSize(input_.dtype));
    simd::ChannelRansEncoder rans(LanesFor(input_.count), reinterpret_cast<uint8_t*>(words), room);
    size_t at = scratch_.symbols.size();
    const int32_t* low = scratch_.low.data() + scratch_.low.size();
    std::vector<TokenSpan> spans;
    for (size_t s = segments.size(); s-- > 0;) {
      const Segment& segment = segments[s];
      spans.clear();
      ForEachSpan(segment, [&](const TokenSpan& span) { spans.push_back(span); });
      for (size_t c = (segment.channels + kStripChannels - 1) / kStripChannels * kStripChannels; c > 0;) {
        c -= kStripChannels;
        at -= segment.tokens * kStripChannels;
        const std::span<const int> classes = StripClasses(segment, c);
        for (size_t i = spans.size(); i-- > 0;) {
          const simd::StripTables coding = StripCoding(tables_, classes, spans[i].class_shift);
          const uint8_t* const symbols = scratch_.symbols.data() + at + spans[i].begin * kStripChannels;
          const size_t tokens = spans[i].end - spans[i].begin;
          if (coding.has_low_bits) low -= tokens * kStripChannels;
          if (!simd::EncodeStrip(coding, symbols, low, tokens, classes.size(), rans)) return 0;
        }
      }
    }
    return rans.Finish();
  }

  const TransformFormat& format_;
  const TransformInput& input_;
  const bool sinks_;
  const bool needs_words_;
  float step_;
  bool is_nothing_ = false;
  const std::span<const simd::ChannelTable> tables_;
  SegmentBasis basis_;
  const Reconstruction* reconstruction_ = nullptr;  // while what is decoded is asked for
  std::optional<simd::RotaryGain> first_gain_;      // of the first segment that can be turned back
  simd::RotaryGain gain_;                           // of all of them
  Scratch& scratch_;
};

}  // namespace

bool CountClasses(const TransformFormat& format, bool sinks, float step, const TransformInput& input,
                  ClassCounts& counts) {
  Encoder encoder(format, sinks, step, input);
  if (!encoder.Load()) return false;
  encoder.Count(counts);
  return true;
}

namespace {

std::optional<TransformSizes> EncodeOrStore(Encoder& encoder, float step, const TransformInput& input, std::byte* side,
                                            std::byte* words, std::byte* decoded) {
  TransformSizes sizes = {};
  if (input.count == 0) return sizes;
  if (!encoder.Load()) return std::nullopt;
  if (step > 0 && encoder.Encode(side, words, decoded, sizes)) return sizes;
  std::byte* const values = WriteHeader({BlockForm::kStored, 0, {}}, false, side);
  const size_t bytes = input.count * DTypeSize(input.dtype);
  std::copy_n(input.values, bytes, values);
  if (decoded != nullptr) std::copy_n(input.values, bytes, decoded);
  return TransformSizes{.side = 1 + bytes, .words = 0, .step = sizes.step};
}

}  // namespace

std::optional<TransformSizes> EncodeTransform(const TransformFormat& format, bool sinks, float step,
                                              const TransformInput& input, std::byte* side, std::byte* words,
                                              std::byte* decoded) {
  Encoder encoder(format, sinks, step, input);
  return EncodeOrStore(encoder, step, input, side, words, decoded);
}

bool ReconstructTransform(const TransformFormat& format, bool sinks, float step, const TransformInput& input,
                          std::byte* side, std::byte* words, std::byte* decoded) {
  Encoder encoder(format, sinks, step, input, false);
  return EncodeOrStore(encoder, step, input, side, words, decoded).has_value();
}

}  // namespace kvcompress
