#include "proto/wire/convert.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/chain_spec.h"

namespace kvcompress {

absl::StatusOr<TensorDesc> FromMessage(const v1::Tensor& message) {
  TensorDesc tensor;
  tensor.name = message.name();
  tensor.fingerprint = message.fingerprint();
  const auto invalid = [&tensor](std::string_view what, int number) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": %s %d", tensor.name, what, number));
  };
  if (message.dtype() == v1::DTYPE_UNSPECIFIED) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": no dtype", tensor.name));
  }
  if (!v1::DType_IsValid(message.dtype())) return invalid("unknown dtype", message.dtype());
  tensor.dtype = static_cast<DType>(message.dtype());
  tensor.shape.assign(message.shape().begin(), message.shape().end());
  if (message.axes().empty()) {
    tensor.axes = DefaultAxes(tensor.name, tensor.shape.size());
    return tensor;
  }
  for (int role : message.axes()) {
    if (!v1::AxisRole_IsValid(role)) return invalid("unknown axis role", role);
    tensor.axes.push_back(static_cast<AxisRole>(role));
  }
  return tensor;
}

void ToMessage(const TensorDesc& tensor, v1::Tensor& message) {
  message.set_name(tensor.name);
  message.set_dtype(static_cast<v1::DType>(tensor.dtype));
  message.mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  for (AxisRole role : tensor.axes) message.add_axes(static_cast<v1::AxisRole>(role));
  message.set_fingerprint(tensor.fingerprint);
}

absl::StatusOr<simd::RotaryEmbedding> FromMessage(const v1::RotaryEmbedding& message) {
  if (!v1::RotaryPairs_IsValid(message.pairs())) {
    return absl::InvalidArgumentError(absl::StrFormat("rotary: unknown pairs %d", message.pairs()));
  }
  if (!v1::RotaryScalingKind_IsValid(message.scaling().kind())) {
    return absl::InvalidArgumentError(absl::StrFormat("rotary: unknown scaling %d", message.scaling().kind()));
  }
  const bool interleaved = message.pairs() == v1::ROTARY_PAIRS_INTERLEAVED;
  const simd::RotaryEmbedding rotary = {
      .theta = message.theta(),
      .pairs = interleaved ? simd::RotaryPairs::kInterleaved : simd::RotaryPairs::kHalf,
      .dims = message.dims(),
      .offset = message.offset(),
      .start = message.start(),
      .scaling = simd::WithUsual({.kind = static_cast<simd::RotaryScaling::Kind>(message.scaling().kind()),
                                  .factor = message.scaling().factor(),
                                  .low = message.scaling().low(),
                                  .high = message.scaling().high(),
                                  .original = message.scaling().original()})};
  KVC_RETURN_IF_ERROR(CheckRotary(rotary));
  return rotary;
}

TensorReport FromMessage(const v1::TensorReport& message, TensorDesc tensor, uint64_t elements) {
  const bool passed_through = IsOpaque(tensor.dtype);
  ErrorSums sums = FromMessage(message.sums());
  sums.rotary = {message.rotary().values(), message.rotary().turned(), message.rotary().bits()};
  return {.tensor = std::move(tensor),
          .codec = message.codec(),
          .codec_name = {},
          .policy = message.policy(),
          .elements = elements,
          .passed_through = passed_through,
          .tensor_bytes = message.tensor_bytes(),
          .frame_bytes = message.frame_bytes(),
          .sums = sums,
          .nonfinite_blocks = message.nonfinite_blocks(),
          .codec_seconds = message.codec_seconds(),
          .copied_bytes = message.copied_bytes()};
}

void ToMessage(const TensorReport& report, v1::TensorReport& message) {
  message.set_name(report.tensor.name);
  message.set_codec(report.codec);
  message.set_policy(report.policy);
  message.set_elements(report.elements);
  message.set_tensor_bytes(report.tensor_bytes);
  message.set_frame_bytes(report.frame_bytes);
  message.set_nonfinite_blocks(report.nonfinite_blocks);
  message.set_codec_seconds(report.codec_seconds);
  message.set_copied_bytes(report.copied_bytes);
  message.set_passed_through(report.passed_through);
  message.set_fingerprint(report.tensor.fingerprint);
  const simd::RotaryGain& rotary = report.sums.rotary;
  if (rotary.values == 0) return;
  message.mutable_rotary()->set_values(rotary.values);
  message.mutable_rotary()->set_turned(rotary.turned);
  message.mutable_rotary()->set_bits(rotary.bits);
}

void ToMessage(const TensorReport& report, const Quality& quality, std::vector<Violation> violations,
               v1::TensorReport& message) {
  ToMessage(report, message);
  if (report.passed_through) return;
  ToMessage(quality, LevelOf(quality), *message.mutable_quality());
  ToMessage(report.sums, *message.mutable_sums());
  for (Violation& violation : violations) message.add_violations(std::move(violation.text));
}

void ToMessage(const Quality& quality, std::optional<QualityLevel> level, v1::Quality& message) {
  message.set_rmse(quality.rmse);
  message.set_mean_abs_error(quality.mean_abs_error);
  if (const auto snr_db = FiniteSnrDb(quality.snr_db)) message.set_snr_db(*snr_db);
  message.set_cosine_similarity(quality.cosine_similarity);
  message.set_max_error(quality.max_error);
  if (const auto snr_db = FiniteSnrDb(quality.token_snr_db)) message.set_token_snr_db(*snr_db);
  if (level) message.set_level(std::string(QualityLevelName(*level)));
}

ErrorSums FromMessage(const v1::ErrorSums& message) {
  return {.count = message.count(),
          .sum = message.sum(),
          .sum_squares = message.sum_squares(),
          .sum_deviations = message.sum_deviations(),
          .sum_error_squares = message.sum_error_squares(),
          .sum_abs_error = message.sum_abs_error(),
          .sum_cross = message.sum_cross(),
          .max_abs_error = message.max_abs_error(),
          .token_count = message.token_count(),
          .token_deviations = message.token_deviations(),
          .token_error_deviations = message.token_error_deviations(),
          .max_channel_constant = message.max_channel_constant(),
          .rotary = {}};
}

void ToMessage(const ErrorSums& sums, v1::ErrorSums& message) {
  message.set_count(sums.count);
  message.set_sum(sums.sum);
  message.set_sum_squares(sums.sum_squares);
  message.set_sum_deviations(sums.sum_deviations);
  message.set_sum_error_squares(sums.sum_error_squares);
  message.set_sum_abs_error(sums.sum_abs_error);
  message.set_sum_cross(sums.sum_cross);
  message.set_max_abs_error(sums.max_abs_error);
  message.set_token_count(sums.token_count);
  message.set_token_deviations(sums.token_deviations);
  message.set_token_error_deviations(sums.token_error_deviations);
  message.set_max_channel_constant(sums.max_channel_constant);
}

v1::CompressHeader MakeHeader(const TensorDesc& tensor, std::string codec, bool to_buffers) {
  v1::CompressHeader header;
  ToMessage(tensor, *header.mutable_tensor());
  header.set_codec(std::move(codec));
  header.set_frame_to_buffer(to_buffers);
  return header;
}

v1::DecompressHeader MakeHeader(std::string name, bool to_buffers, std::string fingerprint) {
  v1::DecompressHeader header;
  header.set_name(std::move(name));
  header.set_fingerprint(std::move(fingerprint));
  header.set_data_to_buffer(to_buffers);
  return header;
}

}  // namespace kvcompress
