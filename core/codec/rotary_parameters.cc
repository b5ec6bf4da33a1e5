#include "core/codec/rotary_parameters.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/parameter.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// The place of a parameter among those of the stage's codec; their number where there is none of that name.
size_t PlaceOf(const StageSpec& stage, std::string_view parameter) {
  const auto& parameters = stage.codec->parameters;
  return static_cast<size_t>(std::ranges::find(parameters, parameter, &Parameter::name) - parameters.begin());
}

bool Has(const StageSpec& stage, std::string_view parameter) {
  return PlaceOf(stage, parameter) < stage.codec->parameters.size();
}

// Whether the codec takes `value`; one that lacks the parameter takes what that would be unless given.
bool Set(std::string_view parameter, double value, StageSpec& stage) {
  const size_t place = PlaceOf(stage, parameter);
  if (place == stage.codec->parameters.size()) return value == 0;
  const Parameter& row = stage.codec->parameters[place];
  if (row.choices.empty() && value > row.max) return false;
  stage.values[place] = value;
  return true;
}

// Whether the codec takes the scaling; its numbers are left out where they are the usual ones.
bool SetScaling(const simd::RotaryScaling& scaling, StageSpec& stage) {
  const simd::RotaryScaling usual = simd::WithUsual({.kind = scaling.kind});
  return Set("scaling", static_cast<double>(scaling.kind), stage) && Set("factor", scaling.factor, stage) &&
         Set("low", scaling.low == usual.low ? 0 : scaling.low, stage) &&
         Set("high", scaling.high == usual.high ? 0 : scaling.high, stage) &&
         Set("original", scaling.original == usual.original ? 0 : static_cast<double>(scaling.original), stage);
}

// With the embedding where the codec has none and takes it: not with an artifact, which has one, or where only means
// are taken of keys that are turned back.
StageSpec WithRotaryOf(const simd::RotaryEmbedding& rotary, const StageSpec& stage) {
  if (!Has(stage, "theta")) return stage;
  StageSpec placed = stage;
  if (stage.Number("start") == 0) Set("start", static_cast<double>(rotary.start), placed);
  if (stage.Number("theta") != 0 || rotary.theta == 0) return placed;
  StageSpec turned = placed;
  const bool takes_it =
      Set("theta", rotary.theta, turned) && Set("rotary", static_cast<double>(rotary.pairs), turned) &&
      Set("rotary_dims", static_cast<double>(rotary.dims), turned) &&
      Set("rotary_offset", static_cast<double>(rotary.offset), turned) && SetScaling(rotary.scaling, turned);
  return takes_it && (turned.codec->check == nullptr || turned.codec->check(turned).ok()) ? turned : placed;
}

// The chain of these stages, and those within them, with the embedding.
absl::StatusOr<ChainSpec> WithRotaryOf(const simd::RotaryEmbedding& rotary, std::span<const StageSpec> stages) {
  std::string text;
  for (const StageSpec& own : stages) {
    StageSpec stage = WithRotaryOf(rotary, own);
    for (StageSpec::Part& part : stage.parts) {
      KVC_ASSIGN_OR_RETURN(part.chain, WithRotaryOf(rotary, part.chain.stages()));
    }
    absl::StrAppend(&text, text.empty() ? "" : "|", stage.text());
  }
  return ChainSpec::ParseStages(text);
}

std::optional<simd::RotaryEmbedding> FirstRotaryOf(std::span<const StageSpec> stages) {
  for (const StageSpec& stage : stages) {
    if (Has(stage, "theta")) return RotaryOf(stage);
    for (const StageSpec::Part& part : stage.parts) {
      if (const auto within = FirstRotaryOf(part.chain.stages())) return within;
    }
  }
  return std::nullopt;
}

absl::Status Fault(std::string_view what) { return absl::InvalidArgumentError(absl::StrFormat("rotary: %s", what)); }

}  // namespace

absl::Status CheckRotary(const simd::RotaryEmbedding& rotary) {
  constexpr double kMaxTheta = 1e15;
  constexpr uint64_t kMaxChannels = 65536;
  constexpr uint64_t kMaxStart = 1'000'000'000'000'000;
  if (rotary.start > kMaxStart) return Fault(absl::StrFormat("start is %d, above %d", rotary.start, kMaxStart));
  if (rotary.theta == 0) {
    if (rotary == simd::RotaryEmbedding{.start = rotary.start}) return absl::OkStatus();
    return Fault("pairs, dims, offset or scaling without a theta");
  }
  if (!(rotary.theta >= 1 && rotary.theta <= kMaxTheta)) {
    return Fault(absl::StrFormat("theta is %g, not from 1 to %g", rotary.theta, kMaxTheta));
  }
  if (rotary.dims % 2 != 0) return Fault(absl::StrFormat("%d channels turn, an odd number", rotary.dims));
  if (rotary.dims > kMaxChannels || rotary.offset >= kMaxChannels) {
    return Fault(absl::StrFormat("%d channels from %d on are more than the %d that a head can have", rotary.dims,
                                 rotary.offset, kMaxChannels));
  }
  if (const std::string_view fault = simd::FaultOf(rotary.scaling, rotary.theta); !fault.empty()) return Fault(fault);
  return absl::OkStatus();
}

absl::Status CheckRotaryFits(const simd::RotaryEmbedding& rotary, const TensorDesc& tensor) {
  if (rotary.theta == 0 || tensor.shape.empty() || !ParseKvName(tensor.name).is_key) return absl::OkStatus();
  const uint64_t channels = tensor.shape.back();
  const bool fits = rotary.dims <= channels && rotary.offset <= channels - rotary.dims && rotary.offset < channels;
  if (fits || channels == 0) return absl::OkStatus();
  return Fault(
      absl::StrFormat("%d channels from %d on are not within the %d of a head", rotary.dims, rotary.offset, channels));
}

absl::Status CheckRotaryOf(const StageSpec& stage) {
  const auto fault = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", stage.codec->name, what));
  };
  const simd::RotaryEmbedding rotary = RotaryOf(stage);
  if (rotary.theta > 0 && rotary.theta < 1) return fault("theta is below 1");
  if (rotary.theta == 0 && rotary.scaling != simd::RotaryScaling{}) return fault("a scaling goes with a theta");
  const std::string_view of_scaling = simd::FaultOf(rotary.scaling, rotary.theta);
  return of_scaling.empty() ? absl::OkStatus() : fault(of_scaling);
}

simd::RotaryEmbedding RotaryOf(const StageSpec& stage) {
  const simd::RotaryScaling scaling = {.kind = stage.Choice<simd::RotaryScaling::Kind>("scaling"),
                                       .factor = stage.Number("factor"),
                                       .low = stage.Number("low"),
                                       .high = stage.Number("high"),
                                       .original = static_cast<uint64_t>(stage.Int("original"))};
  const uint64_t offset = Has(stage, "rotary_offset") ? static_cast<uint64_t>(stage.Int("rotary_offset")) : 0;
  return {.theta = stage.Number("theta"),
          .pairs = stage.Choice<simd::RotaryPairs>("rotary"),
          .dims = static_cast<uint64_t>(stage.Int("rotary_dims")),
          .offset = offset,
          .start = static_cast<uint64_t>(stage.Int("start")),
          .scaling = simd::WithUsual(scaling)};
}

absl::StatusOr<ChainSpec> ChainSpec::WithRotary(std::string_view tensor_name,
                                                const simd::RotaryEmbedding& rotary) const {
  KVC_RETURN_IF_ERROR(CheckRotary(rotary));
  const KvName kv = ParseKvName(tensor_name);
  const bool turns = kv.layer < 0 || kv.is_key;
  return WithRotaryOf(turns ? rotary : simd::RotaryEmbedding{.start = rotary.start}, For(tensor_name).stages());
}

std::optional<simd::RotaryEmbedding> ChainSpec::rotary() const { return FirstRotaryOf(stages()); }

}  // namespace kvcompress
