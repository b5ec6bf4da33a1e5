#include "client/cli/rotary_report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/profile/rope_scaling.h"

namespace kvcompress {
namespace {

using Json = nlohmann::ordered_json;

std::string_view PairsName(simd::RotaryPairs pairs) {
  return pairs == simd::RotaryPairs::kHalf ? "half" : "interleaved";
}

double BitsPerValue(const simd::RotaryGain& gain) {
  return gain.values == 0 ? 0 : gain.bits / static_cast<double>(gain.values);
}

// The tensors that can be turned back, those of which something was, and what all of them have gained.
struct Gains {
  size_t tensors = 0;
  size_t undone = 0;
  simd::RotaryGain total;

  explicit Gains(const FileReport& report) {
    for (const TensorReport& tensor : report.tensors) {
      const simd::RotaryGain& own = tensor.sums.rotary;
      if (own.values == 0) continue;
      ++tensors;
      if (own.turned > 0) ++undone;
      total.Merge(own);
    }
  }
};

}  // namespace

Json RotaryJson(const RotaryUse& use) {
  return {{"theta", use.rotary.theta}, {"pairs", PairsName(use.rotary.pairs)},
          {"dims", use.rotary.dims},   {"offset", use.rotary.offset},
          {"start", use.rotary.start}, {"scaling", RopeScalingJson(use.rotary.scaling)},
          {"from", use.source}};
}

Json RotaryJson(const FileReport& report) {
  if (!report.rotary) return nullptr;
  const Gains gains(report);
  Json json = RotaryJson(*report.rotary);
  json["tensors"] = gains.tensors;
  json["undone_tensors"] = gains.undone;
  json["saved_bits_per_value"] = BitsPerValue(gains.total);
  return json;
}

Json RotaryGainJson(const simd::RotaryGain& gain) {
  return {{"undone_share", static_cast<double>(gain.turned) / static_cast<double>(gain.values)},
          {"saved_bits_per_value", BitsPerValue(gain)}};
}

std::string RotaryLine(const FileReport& report) {
  if (!report.rotary) return "";
  const simd::RotaryEmbedding& rotary = report.rotary->rotary;
  const Json scaling = RopeScalingJson(rotary.scaling);
  std::string line = absl::StrFormat("rotary: theta %g, pairs %s, dims %d, offset %d, start %d, scaling %s, from %s",
                                     rotary.theta, PairsName(rotary.pairs), rotary.dims, rotary.offset, rotary.start,
                                     scaling.is_null() ? "none" : scaling.dump(), report.rotary->source);
  const Gains gains(report);
  if (gains.tensors > 0) {
    absl::StrAppendFormat(&line, "; undone in %d of %d key tensors, which saves about %.2f bits a value", gains.undone,
                          gains.tensors, BitsPerValue(gains.total));
  }
  return line + "\n";
}

std::string RotaryWarning(const FileReport& report) {
  if (report.misses_rotary) return std::string(kUnknownRotary);
  const Gains gains(report);
  if (2 * gains.undone >= gains.tensors) return "";
  return absl::StrFormat(
      "undoing the rotation gained nothing on %d of %d key tensors: check -rope-theta and the other -rope flags, or "
      "what the file's metadata, the profile or the codec say in their place",
      gains.tensors - gains.undone, gains.tensors);
}

}  // namespace kvcompress
