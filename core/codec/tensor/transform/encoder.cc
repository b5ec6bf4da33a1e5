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
#include "core/simd/trellis.h"

namespace kvcompress {
namespace {

using simd::kStripChannels;

// The upper part of a value that its table, of this reach, does not have.
struct Escape {
  int32_t high;
  int32_t reach;
};

// Buffers that a thread uses again for every block.
struct Scratch {
  std::vector<float> values;
  std::vector<float> strip;
  std::vector<int32_t> quantized, points;
  std::vector<uint32_t> decisions;
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
  Encoder(const TransformFormat& format, bool sinks, float step, const TransformInput& input)
      : format_(format),
        input_(input),
        sinks_(sinks),
        step_(step),
        tables_(ChannelTables(format.trellis)),
        basis_(format.artifact.get(), input.layout),
        scratch_(Scratch::OfThread()) {}

  // Takes values in units, and raises the step where points would not reach the largest one. False where one is
  // refused.
  bool Load() {
    scratch_.values.resize(input_.count);
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
    sizes.words = EncodeSymbols(segments, words);
    sizes.rotary = gain_;
    sizes.step = step_;
    const size_t stored = input_.count * DTypeSize(input_.dtype);
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

  // Returns the largest magnitude as it is.
  float LoadInUnits() {
    return simd::LoadScaled(input_.dtype, input_.values, input_.count, 1 / UnitOf(format_.trellis, step_),
                            scratch_.values.data());
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
      TurnTokens(format_, input_.layout, segment, at / channels, n / channels, simd::RotaryTurn::kBack, scratch_.turns,
                 part);
    };
    if (!first_gain_) {
      first_gain_ = TurnBackIfNarrower(values, segment.count(), channels, turn_back);
    } else if (first_gain_->turned > 0) {
      turn_back(0, segment.count(), values);
    }
    segment.turned = first_gain_->turned > 0;
    const double share = static_cast<double>(segment.count()) / static_cast<double>(first_gain_->values);
    gain_.Merge({segment.count(), segment.turned ? segment.count() : 0, first_gain_->bits * share});
  }

  void QuantizeStrip(const Segment& segment, size_t first_channel, float* values) {
    const std::span<const int> classes = StripClasses(segment, first_channel);
    const size_t channels = classes.size();
    const size_t tokens = segment.tokens;
    if (!format_.trellis && channels == kStripChannels) return QuantizePlain(segment, first_channel, values);
    scratch_.strip.resize(tokens * kStripChannels);
    scratch_.quantized.resize(tokens * kStripChannels);
    if (reconstruction_ != nullptr) scratch_.points.resize(tokens * kStripChannels);
    FillStrip(segment, first_channel, channels, values);
    if (format_.trellis) {
      scratch_.decisions.resize(4 * tokens);
      simd::TrellisQuantize(scratch_.strip.data(), tokens, scratch_.decisions.data(), scratch_.quantized.data());
    } else {
      simd::PlainQuantize(scratch_.strip.data(), tokens, scratch_.quantized.data());
    }
    const size_t at = scratch_.symbols.size();
    scratch_.symbols.resize(at + tokens * kStripChannels);
    simd::StripStates states = {};
    ForEachSpan(segment, [&](const TokenSpan& span) {
      const simd::StripTables coding = StripCoding(tables_, classes, span.class_shift);
      MakeSymbols(coding, span, channels, states, scratch_.symbols.data() + at + span.begin * kStripChannels);
      if (reconstruction_ == nullptr) return;
      reconstruction_->Place(segment, {first_channel, channels, span.begin, span.end - span.begin, span.step_shift},
                             scratch_.points.data(), values);
    });
  }

  // Of the quantized values of a span of a strip: symbols, points where they are asked for, and what symbols leave out.
  void MakeSymbols(const simd::StripTables& coding, const TokenSpan& span, size_t channels, simd::StripStates& states,
                   uint8_t* symbols) {
    const size_t tokens = span.end - span.begin;
    const int32_t* const k = scratch_.quantized.data() + span.begin * kStripChannels;
    scratch_.escaped.resize(tokens);
    simd::StripSymbols(coding, k, tokens, channels, format_.trellis ? &states : nullptr, symbols,
                       scratch_.escaped.data(), reconstruction_ != nullptr ? scratch_.points.data() : nullptr);
    if (coding.has_low_bits) scratch_.low.insert(scratch_.low.end(), k, k + tokens * kStripChannels);
    KeepEscapes(coding, k, symbols);
  }

  // A whole strip without the trellis, in one pass.
  void QuantizePlain(const Segment& segment, size_t first_channel, float* values) {
    const std::array<float, kStripChannels> means = MeansOf(segment, first_channel, kStripChannels);
    const size_t at = scratch_.symbols.size();
    scratch_.symbols.resize(at + segment.tokens * kStripChannels);
    ForEachSpan(segment, [&](const TokenSpan& span) {
      const size_t tokens = span.end - span.begin;
      const simd::StripTables coding = StripCoding(tables_, StripClasses(segment, first_channel), span.class_shift);
      Reconstruction::Scale scale{.unit = 0};
      simd::PlacedValues placed = {};
      if (reconstruction_ != nullptr) {
        const Reconstruction::Piece piece{first_channel, kStripChannels, span.begin, tokens, span.step_shift};
        scale = reconstruction_->ScaleOf(segment, piece);
        placed = reconstruction_->PlaceOf(segment, piece, values);
      }
      const simd::PlainStrip strip{.values = values + span.begin * segment.channels + first_channel,
                                   .stride = segment.channels,
                                   .tokens = tokens,
                                   .means = means.data(),
                                   .factor = static_cast<float>(1 << span.step_shift),
                                   .placed_means = scale.means.data(),
                                   .unit = scale.unit,
                                   .placed = placed};
      std::vector<int32_t>& quantized = coding.has_low_bits ? scratch_.low : scratch_.quantized;
      const size_t before = coding.has_low_bits ? quantized.size() : 0;
      quantized.resize(std::max(quantized.size(), before + tokens * kStripChannels));
      scratch_.escaped.resize(tokens);
      uint8_t* const symbols = scratch_.symbols.data() + at + span.begin * kStripChannels;
      simd::PlainSymbols(coding, strip, quantized.data() + before, symbols, scratch_.escaped.data());
      KeepEscapes(coding, quantized.data() + before, symbols);
    });
  }

  // Of the tokens that have some, as scratch_.escaped says.
  void KeepEscapes(const simd::StripTables& coding, const int32_t* k, const uint8_t* symbols) {
    for (size_t t = 0; t < scratch_.escaped.size(); ++t) {
      for (uint32_t left = scratch_.escaped[t]; left != 0; left &= left - 1) {
        const auto c = static_cast<size_t>(std::countr_zero(left));
        const size_t at = t * kStripChannels + c;
        const size_t quantizer = (symbols[at] & simd::kOddQuantizer) != 0 ? 1 : 0;
        scratch_.escapes.push_back({k[at] >> coding.low_bits[c], coding[c].reach[quantizer]});
      }
    }
  }

  // Of the channels of a strip, in units.
  static std::array<float, kStripChannels> MeansOf(const Segment& segment, size_t first_channel, size_t channels) {
    std::array<float, kStripChannels> means = {};
    for (size_t c = 0; c < channels; ++c) means[c] = static_cast<float>(segment.means[first_channel + c]) * 0.5f;
    return means;
  }

  // What is to be quantized, in units of each token's step.
  void FillStrip(const Segment& segment, size_t first_channel, size_t channels, const float* values) {
    const std::array<float, kStripChannels> means = MeansOf(segment, first_channel, channels);
    ForEachSpan(segment, [&](const TokenSpan& span) {
      simd::FillStrip(values + span.begin * segment.channels + first_channel, segment.channels, span.end - span.begin,
                      channels, means.data(), static_cast<float>(1 << span.step_shift),
                      scratch_.strip.data() + span.begin * kStripChannels);
    });
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
  float step_;
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

std::optional<TransformSizes> EncodeTransform(const TransformFormat& format, bool sinks, float step,
                                              const TransformInput& input, std::byte* side, std::byte* words,
                                              std::byte* decoded) {
  TransformSizes sizes = {};
  if (input.count == 0) return sizes;
  Encoder encoder(format, sinks, step, input);
  if (!encoder.Load()) return std::nullopt;
  if (step > 0 && encoder.Encode(side, words, decoded, sizes)) return sizes;
  std::byte* const values = WriteHeader({BlockForm::kStored, 0, {}}, false, side);
  const size_t bytes = input.count * DTypeSize(input.dtype);
  std::copy_n(input.values, bytes, values);
  if (decoded != nullptr) std::copy_n(input.values, bytes, decoded);
  return TransformSizes{.side = 1 + bytes, .words = 0, .step = sizes.step};
}

}  // namespace kvcompress
