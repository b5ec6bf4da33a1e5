#include "client/file/file_rotary.h"

#include <span>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "client/file/prefixed.h"
#include "core/base/status_macros.h"
#include "core/codec/chain_spec.h"
#include "core/frame_plan.h"
#include "core/profile/rope_scaling.h"

namespace kvcompress {
namespace {

// To find out whether a codec can turn keys back.
constexpr simd::RotaryEmbedding kAnyRotary = {.theta = 10000};

absl::Status BadKey(const std::string& key, const std::string& text) {
  return absl::InvalidArgumentError(absl::StrFormat("its metadata's %s is \"%s\"", key, text.substr(0, 40)));
}

// The integer that the metadata have under `key`, or 0.
absl::StatusOr<uint64_t> IntegerOf(const FileMetadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  uint64_t value = 0;
  if (found != metadata.end() && !absl::SimpleAtoi(found->second, &value)) return BadKey(key, found->second);
  return value;
}

bool IsOfOneModel(simd::RotaryEmbedding a, simd::RotaryEmbedding b) {
  a.start = b.start = 0;
  return a == b;
}

absl::StatusOr<simd::RotaryEmbedding> Merged(const FileMetadata& metadata,
                                             const std::optional<simd::RotaryEmbedding>& given,
                                             std::optional<uint64_t> start) {
  if (given && start) {
    simd::RotaryEmbedding rotary = *given;
    rotary.start = *start;
    return rotary;
  }
  KVC_ASSIGN_OR_RETURN(simd::RotaryEmbedding rotary, RotaryOfMetadata(metadata));
  const uint64_t first = start.value_or(rotary.start);
  if (given) rotary = *given;
  rotary.start = first;
  return rotary;
}

// What the first artifact turns back that the stages name; nothing without one that is there.
std::optional<simd::RotaryEmbedding> OfArtifact(std::span<const StageSpec> stages, ArtifactStore* artifacts) {
  for (const StageSpec& stage : stages) {
    for (const StageSpec::Part& part : stage.parts) {
      if (auto within = OfArtifact(part.chain.stages(), artifacts)) return within;
    }
    if (stage.digest.empty() || artifacts == nullptr) continue;
    const auto artifact = artifacts->Find(stage.digest);
    if (!artifact.ok() || !(*artifact)->rotary) continue;
    simd::RotaryEmbedding rotary = *(*artifact)->rotary;
    rotary.start = static_cast<uint64_t>(stage.Int("start"));
    return rotary;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<simd::RotaryEmbedding> RotaryOfMetadata(const FileMetadata& metadata) {
  simd::RotaryEmbedding rotary;
  KVC_ASSIGN_OR_RETURN(rotary.start, IntegerOf(metadata, "seq_start"));
  const auto theta = metadata.find("rope_theta");
  if (theta == metadata.end()) return rotary;
  if (!absl::SimpleAtod(theta->second, &rotary.theta) || !(rotary.theta >= 1 || rotary.theta == 0)) {
    return BadKey("rope_theta", theta->second);
  }
  if (rotary.theta == 0) return rotary;
  if (const auto pairs = metadata.find("rope_pairs"); pairs != metadata.end() && pairs->second != "half") {
    if (pairs->second != "interleaved") return BadKey("rope_pairs", pairs->second);
    rotary.pairs = simd::RotaryPairs::kInterleaved;
  }
  KVC_ASSIGN_OR_RETURN(rotary.dims, IntegerOf(metadata, "rope_dims"));
  KVC_ASSIGN_OR_RETURN(rotary.offset, IntegerOf(metadata, "rope_offset"));
  if (const auto scaling = metadata.find("rope_scaling"); scaling != metadata.end()) {
    absl::StatusOr<simd::RotaryScaling> parsed = ParseRopeScaling(scaling->second, rotary.theta);
    if (!parsed.ok()) return Prefixed("its metadata's rope_scaling", parsed.status());
    rotary.scaling = *parsed;
  }
  const absl::Status status = CheckRotary(rotary);
  if (!status.ok()) return absl::InvalidArgumentError(absl::StrFormat("its metadata: %s", status.message()));
  return rotary;
}

bool SaysThatKeysDoNotTurn(const FileMetadata& metadata) {
  const auto theta = metadata.find("rope_theta");
  double value = 1;
  return theta != metadata.end() && absl::SimpleAtod(theta->second, &value) && value == 0;
}

FileRotary::FileRotary(const FileMetadata& metadata, const std::optional<simd::RotaryEmbedding>& given,
                       std::optional<uint64_t> start, ArtifactStore* artifacts)
    : source_(given ? "flags" : "metadata"),
      may_turn_(given || !SaysThatKeysDoNotTurn(metadata)),
      artifacts_(artifacts),
      rotary_(Merged(metadata, given, start)) {}

absl::StatusOr<std::string> FileRotary::CodecFor(const Profile& profile, const TensorDesc& tensor) {
  KVC_ASSIGN_OR_RETURN(const std::string own_text, profile.CodecFor(tensor));
  KVC_ASSIGN_OR_RETURN(const ChainSpec own, ChainSpec::ParseStages(own_text));
  const std::optional<simd::RotaryEmbedding> before = own.rotary();
  if (IsOpaque(tensor.dtype) || !before) return own_text;
  if (!rotary_.ok()) return OfTensor(tensor.name, rotary_.status());
  KVC_ASSIGN_OR_RETURN(const std::string text, WithRotary(tensor, own_text, *rotary_));
  KVC_ASSIGN_OR_RETURN(const ChainSpec completed, ChainSpec::ParseStages(text));
  const simd::RotaryEmbedding after = *completed.rotary();
  if (after.theta == 0 && may_turn_ && ParseKvName(tensor.name).is_key) {
    is_missed_ = is_missed_ || completed.WithRotary(tensor.name, kAnyRotary)->rotary()->theta > 0;
  }
  if (!use_ && ParseKvName(tensor.name).is_key) {
    if (const std::optional<simd::RotaryEmbedding> learned = OfArtifact(completed.stages(), artifacts_)) {
      use_ = {*learned, "artifact"};
    }
  }
  if (!use_ && after.theta > 0) {
    const bool is_profiles = IsOfOneModel(*before, profile.rotary());
    use_ = {after, before->theta == 0 ? source_ : is_profiles ? "profile" : "codec"};
  }
  return text;
}

}  // namespace kvcompress
