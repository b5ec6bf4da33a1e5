#include "client/cli/calibration_report.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/artifact/artifact_store.h"
#include "core/profile/rope_scaling.h"

namespace kvcompress {
namespace {

using Json = nlohmann::ordered_json;

std::optional<double> Int4SnrDb(const TensorCalibration& tensor) {
  if (tensor.int4_squared_error <= 0 || tensor.variance <= 0) return std::nullopt;
  return 10 * std::log10(tensor.variance / tensor.int4_squared_error);
}

Json OrNull(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

// Means over the tensors that have a figure.
class Mean {
 public:
  void Add(std::optional<double> value) {
    if (!value) return;
    sum_ += *value;
    ++count_;
  }
  Json json() const { return count_ == 0 ? Json(nullptr) : Json(sum_ / count_); }

 private:
  double sum_ = 0;
  int count_ = 0;
};

std::vector<uint32_t> RanksOf(const CalibrationReport& report, const ArtifactKey& key) {
  const auto found = report.ranks.find(key);
  return found != report.ranks.end() ? found->second : std::vector<uint32_t>();
}

// The part of a tensor's variance, or of what errors cost, that its coefficients within the ranks have.
double KeptVariance(const CalibrationReport& report, const ArtifactKey& key) {
  const Artifact& artifact = report.calibration.artifact;
  const std::vector<float>& sigma = artifact.tensors.at(key).sigma;
  const std::vector<uint32_t> ranks = RanksOf(report, key);
  double all = 0, kept = 0;
  for (size_t i = 0; i < sigma.size(); ++i) {
    const double power = static_cast<double>(sigma[i]) * static_cast<double>(sigma[i]);
    const size_t head = i / artifact.head_dim;
    all += power;
    if (ranks.empty() || i % artifact.head_dim < ranks[ranks.size() == 1 ? 0 : head]) kept += power;
  }
  return kept / all;
}

// Of all keys, or all values.
Json KindJson(const CalibrationReport& report, bool values) {
  Mean snr, channels, coefficients, kept;
  for (const TensorCalibration& tensor : report.calibration.tensors) {
    if (tensor.key.is_value != values) continue;
    snr.Add(Int4SnrDb(tensor));
    channels.Add(tensor.channel_bits);
    coefficients.Add(tensor.coefficient_bits);
    kept.Add(KeptVariance(report, tensor.key));
  }
  return {{"int4_snr_db", snr.json()},
          {"channel_bits", channels.json()},
          {"coefficient_bits", coefficients.json()},
          {"kept_variance", kept.json()}};
}

Json RotaryJson(const std::optional<simd::RotaryEmbedding>& rotary) {
  if (!rotary) return nullptr;
  return {{"theta", rotary->theta},
          {"pairs", rotary->pairs == simd::RotaryPairs::kHalf ? "half" : "interleaved"},
          {"dims", rotary->dims},
          {"offset", rotary->offset},
          {"scaling", RopeScalingJson(rotary->scaling)}};
}

}  // namespace

std::vector<std::string> CalibrationWarnings(const CalibrationReport& report, std::string_view output) {
  const Artifact& artifact = report.calibration.artifact;
  std::vector<std::string> warnings;
  if (!output.ends_with(kArtifactExtension)) {
    warnings.push_back(absl::StrFormat(
        "the output is not named *%s: a directory of artifacts (-artifacts) has only such files", kArtifactExtension));
  }
  if (artifact.tokens < kWantedTokens) {
    warnings.push_back(absl::StrFormat("calibrated on %d tokens, fewer than %d: other texts may fit the artifact worse",
                                       artifact.tokens, kWantedTokens));
  }
  if (!artifact.rotary && report.keys_turn) {
    warnings.push_back(
        "no -rope-theta, and none in the metadata (rope_theta): keys are taken as they are, with their rotation");
  }
  if (report.skipped_tensors > 0) {
    warnings.push_back(absl::StrFormat("%d tensors are not named layer_{i}_key or layer_{i}_value: they are left out",
                                       report.skipped_tensors));
  }
  return warnings;
}

std::string CalibrationJson(const CalibrationReport& report, const std::string& output, double milliseconds) {
  const Calibration& calibration = report.calibration;
  const Artifact& artifact = calibration.artifact;
  Json json = {{"artifact", report.id},
               {"output", output},
               {"artifact_bytes", report.bytes},
               {"tokens", artifact.tokens},
               {"layers", artifact.tensors.rbegin()->first.layer + 1},
               {"heads", artifact.heads},
               {"head_dim", artifact.head_dim},
               {"groups", artifact.groups()},
               {"group_heads", artifact.group_heads},
               {"group_dim", artifact.group_dim()},
               {"rotary", RotaryJson(artifact.rotary)},
               {"weights", artifact.weighted ? "given" : "none"},
               {"keys", KindJson(report, false)},
               {"values", KindJson(report, true)},
               {"tensors", Json::array()},
               {"warnings", CalibrationWarnings(report, output)},
               {"processing_time_ms", milliseconds}};
  for (const TensorCalibration& tensor : calibration.tensors) {
    json["tensors"].push_back({{"tensor", tensor.key.name()},
                               {"tokens", tensor.tokens},
                               {"step", artifact.tensors.at(tensor.key).step},
                               {"int4_snr_db", OrNull(Int4SnrDb(tensor))},
                               {"channel_bits", OrNull(tensor.channel_bits)},
                               {"coefficient_bits", OrNull(tensor.coefficient_bits)},
                               {"ranks", RanksOf(report, tensor.key)},
                               {"kept_variance", KeptVariance(report, tensor.key)}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string CalibrationLines(const CalibrationReport& report) {
  std::string text;
  for (const TensorCalibration& tensor : report.calibration.tensors) {
    absl::StrAppendFormat(&text, "%s: %d tokens", tensor.key.name(), tensor.tokens);
    if (tensor.channel_bits) {
      absl::StrAppendFormat(&text, ", at int4's SNR %.2f bits by channels, %.2f by coefficients", *tensor.channel_bits,
                            *tensor.coefficient_bits);
    }
    if (const std::vector<uint32_t> ranks = RanksOf(report, tensor.key); !ranks.empty()) {
      absl::StrAppendFormat(&text, ", ranks %s keep %.1f %% of the variance", absl::StrJoin(ranks, "/"),
                            100 * KeptVariance(report, tensor.key));
    }
    text += "\n";
  }
  return text;
}

}  // namespace kvcompress
