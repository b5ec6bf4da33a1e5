#include "core/codec/tensor/transform/basis.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "absl/strings/str_format.h"
#include "core/base/block_size.h"
#include "core/base/elementary.h"
#include "core/codec/tensor/transform/tables.h"
#include "core/simd/matrix_rows.h"

namespace kvcompress {
namespace {

// How the heads of a tensor lie.
struct HeadAxes {
  uint64_t heads = 1;
  uint64_t tokens = 0;
  uint64_t head_dim = 0;
  bool within_tokens = false;  // else a head's tokens follow one another
};

// None where they lie in another way.
std::optional<HeadAxes> HeadAxesOf(const TensorDesc& tensor) {
  const size_t rank = tensor.shape.size();
  if (rank < 2 || tensor.axes[rank - 1] != AxisRole::kHeadDim) return std::nullopt;
  HeadAxes axes{.heads = 1, .tokens = tensor.shape[rank - 2], .head_dim = tensor.shape[rank - 1]};
  const bool has_heads = std::ranges::count(tensor.axes, AxisRole::kHeads) > 0;
  if (std::ranges::count(tensor.axes, AxisRole::kSeq) != 1) return std::nullopt;
  if (tensor.axes[rank - 2] == AxisRole::kSeq) {
    if (!has_heads) return axes;
    if (rank < 3 || tensor.axes[rank - 3] != AxisRole::kHeads) return std::nullopt;
    axes.heads = tensor.shape[rank - 3];
    return axes;
  }
  if (rank < 3 || tensor.axes[rank - 2] != AxisRole::kHeads || tensor.axes[rank - 3] != AxisRole::kSeq) {
    return std::nullopt;
  }
  axes.heads = tensor.shape[rank - 2];
  axes.tokens = tensor.shape[rank - 3];
  axes.within_tokens = axes.heads > 1;
  return axes;
}

std::optional<ArtifactKey> KeyOf(std::string_view name) {
  const KvName kv = ParseKvName(name);
  if (kv.layer < 0) return std::nullopt;
  return ArtifactKey{static_cast<uint64_t>(kv.layer), !kv.is_key};
}

ArtifactKey KeyOf(uint64_t subject) { return {subject / 2, subject % 2 != 0}; }

bool StepsDiffer(const Artifact& artifact) {
  const float first = artifact.tensors.begin()->second.step;
  return std::ranges::any_of(artifact.tensors, [&](const auto& tensor) { return tensor.second.step != first; });
}

// A tensor's coefficients: log2 of their deviations in units of the tensor's own step.
std::vector<double> Spread(const ArtifactTensor& tensor) {
  std::vector<double> logs;
  logs.reserve(tensor.sigma.size());
  const double step = Log2(tensor.step);
  for (const float sigma : tensor.sigma) logs.push_back(Log2(sigma) - step);
  return logs;
}

// About the bits that they take in all where the common step is 2^`step`.
double BitsOf(const std::vector<double>& spread, double step) {
  constexpr double kOfUnit = 1.25;  // bits of a coefficient whose deviation is the step
  double bits = 0;
  for (const double log : spread) bits += std::max(0.0, log - step + kOfUnit);
  return bits;
}

absl::Status Fault(const std::string& text) { return absl::InvalidArgumentError("transform: " + text); }

}  // namespace

uint32_t BasisBlockElements(const TensorDesc& tensor) {
  const std::optional<HeadAxes> axes = HeadAxesOf(tensor);
  if (!axes || axes->within_tokens) return TransformBlockElements(tensor);
  uint64_t heads = 1;
  for (const uint64_t group_dim : {64, 128, 256}) {
    heads = std::lcm(heads, GroupHeads(axes->heads, axes->head_dim, group_dim));
  }
  const uint64_t unit = heads * axes->tokens * axes->head_dim;
  uint32_t elements = unit == 0 ? 0 : BlockOfUnits(unit);
  if (elements == 0 && unit > 0) elements = BlockOfUnits(unit, kMaxBlockElements);
  return elements != 0 ? elements : TransformBlockElements(tensor);
}

absl::Status CheckFit(const Artifact& artifact, const TensorDesc& tensor) {
  const std::optional<HeadAxes> axes = HeadAxesOf(tensor);
  if (!axes)
    return Fault("an artifact is for tensors with the axes [..., heads, seq, head_dim] or [..., seq, heads, head_dim]");
  if (axes->heads != artifact.heads || axes->head_dim != artifact.head_dim) {
    return Fault(absl::StrFormat("the artifact is for %d heads of %d channels, and this tensor has %d of %d",
                                 artifact.heads, artifact.head_dim, axes->heads, axes->head_dim));
  }
  const uint64_t group = artifact.group_dim() * axes->tokens;
  const bool in_blocks = axes->within_tokens || artifact.group_heads == 1 || group == 0;
  if (!in_blocks && BasisBlockElements(tensor) % group != 0) {
    return Fault(
        absl::StrFormat("%d tokens of %d heads, which the artifact takes together, are too many for a block: "
                        "cut the cache into chunks, or calibrate with smaller groups",
                        axes->tokens, artifact.group_heads));
  }
  if (tensor.name.empty()) return absl::OkStatus();
  const std::optional<ArtifactKey> key = KeyOf(std::string_view(tensor.name));
  if (!key) return Fault("an artifact is for tensors named layer_{i}_key or layer_{i}_value");
  if (artifact.tensors.contains(*key)) return absl::OkStatus();
  return Fault(absl::StrFormat("the artifact has no %s", key->name()));
}

absl::Status CheckRanks(const Artifact& artifact, std::span<const uint32_t> ranks) {
  if (artifact.group_heads != 1) {
    return Fault(
        absl::StrFormat("ranks are of single heads, and the artifact takes %d together: make one with -calibrate "
                        "-config, or with a -group-dim of one head's %d channels",
                        artifact.group_heads, artifact.head_dim));
  }
  if (artifact.head_dim < TransformLayout::kMinChannels) {
    return Fault(absl::StrFormat("ranks are of heads of %d channels and more, and the artifact's have %d",
                                 TransformLayout::kMinChannels, artifact.head_dim));
  }
  if (ranks.size() != 1 && ranks.size() != artifact.heads) {
    return Fault(absl::StrFormat("ranks of %d heads, and the artifact is for %d", ranks.size(), artifact.heads));
  }
  for (size_t head = 0; head < ranks.size(); ++head) {
    if (ranks[head] <= artifact.head_dim) continue;
    return Fault(absl::StrFormat("head %d: rank %d is above its %d channels", head, ranks[head], artifact.head_dim));
  }
  return absl::OkStatus();
}

void AddBasis(const Artifact& artifact, const TensorDesc& tensor, const TokenRun& tokens, size_t count,
              TransformLayout& layout) {
  const std::optional<HeadAxes> axes = HeadAxesOf(tensor);
  const std::optional<ArtifactKey> key = KeyOf(std::string_view(tensor.name));
  if (!axes || !key || !tokens.layout.has_tokens() || artifact.group_dim() < TransformLayout::kMinChannels) return;
  uint64_t arrangement = 1;
  if (!axes->within_tokens) {
    const uint64_t head = tokens.first / (axes->tokens * axes->head_dim) % axes->heads;
    arrangement = 2 + head / artifact.group_heads;
    if (artifact.group_heads > 1) {
      const uint64_t group = artifact.group_dim() * axes->tokens;
      if (tokens.first % group != 0 || count % group != 0) return;
      layout = {.channels = static_cast<uint32_t>(artifact.group_dim()),
                .tokens = axes->tokens,
                .first = 0,
                .head_dim = static_cast<uint32_t>(axes->head_dim)};
    }
  }
  if (layout.channels != (arrangement == 1 ? artifact.heads * artifact.head_dim : artifact.group_dim())) return;
  layout.subject = 2 * key->layer + (key->is_value ? 1 : 0);
  layout.arrangement = arrangement;
}

double ShareOfBits(const Artifact& artifact, const TensorDesc& tensor, double bits) {
  constexpr double kLeast = 0.05;  // what surrounds a frame's values takes as much
  const std::optional<ArtifactKey> key = KeyOf(std::string_view(tensor.name));
  if (!key || !artifact.tensors.contains(*key) || !StepsDiffer(artifact)) return bits;
  std::vector<double> all;
  for (const auto& [_, of_model] : artifact.tensors) {
    const std::vector<double> spread = Spread(of_model);
    all.insert(all.end(), spread.begin(), spread.end());
  }
  // Bits fall as the step grows; at the lower end everybody has more than a spec can ask for.
  double low = *std::ranges::min_element(all) - 40;
  double high = *std::ranges::max_element(all) + 2;
  for (int i = 0; i < 40; ++i) {
    const double step = 0.5 * (low + high);
    (BitsOf(all, step) > bits * static_cast<double>(all.size()) ? low : high) = step;
  }
  const std::vector<double> own = Spread(artifact.tensors.at(*key));
  return std::max(kLeast, BitsOf(own, high) / static_cast<double>(own.size()));
}

bool BasisFits(const Artifact& artifact, const TransformLayout& layout, size_t count) {
  if (layout.arrangement == 0) return layout.subject == 0;
  if (!artifact.tensors.contains(KeyOf(layout.subject)) || layout.head_dim != artifact.head_dim) return false;
  if (layout.arrangement == 1) return layout.channels == artifact.heads * artifact.head_dim;
  if (layout.arrangement - 2 >= artifact.groups() || layout.channels != artifact.group_dim()) return false;
  return artifact.group_heads == 1 || (layout.first == 0 && count % (layout.tokens * layout.channels) == 0);
}

SegmentBasis::SegmentBasis(const Artifact* artifact, const TransformLayout& layout)
    : artifact_(artifact), layout_(layout) {
  if (artifact == nullptr || layout.arrangement == 0) return;
  const ArtifactKey key = KeyOf(layout.subject);
  tensor_ = &artifact->tensors.at(key);
  turns_ = !key.is_value && artifact->rotary.has_value();
}

float SegmentBasis::LargestCoefficient(float largest) const {
  if (tensor_ == nullptr) return largest;
  float most_mean = 0;
  for (const float mean : tensor_->mean) most_mean = std::max(most_mean, std::fabs(mean));
  const size_t dim = artifact_->group_dim();
  float most_sum = 0;
  for (size_t at = 0; at < tensor_->forward.size(); at += dim) {
    float sum = 0;
    for (size_t i = 0; i < dim; ++i) sum += std::fabs(tensor_->forward[at + i]);
    most_sum = std::max(most_sum, sum);
  }
  // Turning makes no value larger than the root of two of them.
  return most_sum * (largest * 1.5f + most_mean);
}

size_t SegmentBasis::FirstGroup(const Segment& segment) const {
  if (layout_.arrangement == 1) return 0;
  const uint64_t sequence = (layout_.first + segment.first) / (layout_.tokens * layout_.channels);
  return (layout_.arrangement - 2 + sequence) % artifact_->groups();
}

Segment SegmentBasis::Expected(const Segment& segment, float unit) const {
  Segment expected;
  expected.channels = segment.channels;
  expected.means.assign(segment.channels, 0);
  const float* const sigma = &tensor_->sigma[FirstGroup(segment) * artifact_->group_dim()];
  for (size_t c = 0; c < segment.channels; ++c) {
    const float ratio = sigma[c] / unit;
    expected.classes.push_back(ClassOf(ratio * ratio));
  }
  return expected;
}

void SegmentBasis::Multiply(const Segment& segment, const std::vector<float>& matrices, float* values) {
  constexpr size_t kRows = 64;
  const size_t dim = artifact_->group_dim();
  matrix_.resize(dim * dim);
  rows_.resize(kRows * dim);
  for (size_t first = 0; first < segment.channels; first += dim) {
    const float* const own = &matrices[(FirstGroup(segment) + first / dim) * dim * dim];
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j < dim; ++j) matrix_[j * dim + i] = own[i * dim + j];
    }
    for (size_t t = 0; t < segment.tokens; t += kRows) {
      const size_t count = std::min(kRows, segment.tokens - t);
      float* const from = values + t * segment.channels + first;
      simd::MultiplyRows(from, count, segment.channels, matrix_.data(), dim, rows_.data());
      for (size_t r = 0; r < count; ++r) std::copy_n(&rows_[r * dim], dim, from + r * segment.channels);
    }
  }
}

void SegmentBasis::ToCoefficients(const Segment& segment, float unit, float* values) {
  const float* const mean = &tensor_->mean[FirstGroup(segment) * artifact_->group_dim()];
  const float per_unit = 1 / unit;
  for (size_t t = 0; t < segment.tokens; ++t) {
    float* const row = values + t * segment.channels;
    for (size_t c = 0; c < segment.channels; ++c) row[c] -= mean[c] * per_unit;
  }
  Multiply(segment, tensor_->forward, values);
}

void SegmentBasis::Truncate(const Segment& segment, std::span<const uint32_t> ranks, size_t first,
                            float* coefficients) const {
  if (ranks.empty()) return;
  const size_t dim = artifact_->group_dim();
  for (size_t channel = 0; channel < segment.channels; channel += dim) {
    const size_t head = FirstGroup(segment) + channel / dim;
    const size_t rank = ranks[ranks.size() == 1 ? 0 : head];
    for (size_t t = first; t < segment.tokens; ++t) {
      std::fill_n(coefficients + t * segment.channels + channel + rank, dim - rank, 0.0f);
    }
  }
}

void SegmentBasis::ToValues(const Segment& segment, float* coefficients) {
  Multiply(segment, tensor_->inverse, coefficients);
  const float* const mean = &tensor_->mean[FirstGroup(segment) * artifact_->group_dim()];
  for (size_t t = 0; t < segment.tokens; ++t) {
    float* const row = coefficients + t * segment.channels;
    for (size_t c = 0; c < segment.channels; ++c) row[c] += mean[c];
  }
}

void SegmentBasis::GatherHeads(size_t count, float* values) {
  if (!gathers()) return;
  const size_t dim = layout_.head_dim;
  const size_t group = layout_.tokens * layout_.channels;
  rows_.resize(group);
  for (size_t at = 0; at < count; at += group) {
    const float* from = values + at;
    for (size_t first = 0; first < layout_.channels; first += dim) {
      for (size_t t = 0; t < layout_.tokens; ++t, from += dim) {
        std::copy_n(from, dim, &rows_[t * layout_.channels + first]);
      }
    }
    std::copy_n(rows_.data(), group, values + at);
  }
}

void SegmentBasis::ScatterHeads(const Segment& segment, float* values) {
  if (!gathers()) return;
  const size_t dim = layout_.head_dim;
  rows_.resize(segment.count());
  float* to = rows_.data();
  for (size_t first = 0; first < segment.channels; first += dim) {
    for (size_t t = 0; t < segment.tokens; ++t, to += dim) {
      std::copy_n(values + t * segment.channels + first, dim, to);
    }
  }
  std::copy_n(rows_.data(), segment.count(), values);
}

}  // namespace kvcompress
