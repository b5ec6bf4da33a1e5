#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/artifact/artifact.h"
#include "core/codec/tensor/transform/segment.h"

// What the codec `transform` does with an artifact (docs/format.md, "transform").
namespace kvcompress {

// As TransformBlockElements, but with whole groups of heads of any artifact that calibration makes of such a tensor,
// where these are not too large.
uint32_t BasisBlockElements(const TensorDesc& tensor);

// INVALID_ARGUMENT for a tensor that the artifact is not for: by its axes and, where it has one, its name; and for one
// whose blocks do not have whole groups of heads.
absl::Status CheckFit(const Artifact& artifact, const TensorDesc& tensor);

// INVALID_ARGUMENT for ranks that are not of the artifact's heads, and for any where a group has several heads.
absl::Status CheckRanks(const Artifact& artifact, std::span<const uint32_t> ranks);

// Sets what `layout`, LayoutOf the same, says of the artifact: nothing where it is not known which heads are there.
void AddBasis(const Artifact& artifact, const TensorDesc& tensor, const TokenRun& tokens, size_t count,
              TransformLayout& layout);

// What `bits` a value become for this tensor so that they are the mean over the artifact's tensors where each has its
// own `step` times a common one: what errors cost the model then decides who gets more. Of an artifact whose steps are
// all the same, which does not tell, and of a tensor that it has not, they stay what they are.
double ShareOfBits(const Artifact& artifact, const TensorDesc& tensor, double bits);

// Whether a layout that was read, of a block of `count` values, can be of this artifact.
bool BasisFits(const Artifact& artifact, const TransformLayout& layout, size_t count);

// The coordinates of a block's segments. Values are those of whole segments.
class SegmentBasis {
 public:
  // Both may be of no artifact: then it changes nothing.
  SegmentBasis(const Artifact* artifact, const TransformLayout& layout);

  bool is_none() const { return tensor_ == nullptr; }
  // Whether the segment has coefficients in place of values, and whether these are of values that are turned back.
  bool Changes(const Segment& segment) const { return tensor_ != nullptr && segment.is_whole; }
  bool turns() const { return turns_; }
  // The scale of the tensor's step.
  float step() const { return tensor_ != nullptr ? tensor_->step : 1; }
  // What no coefficient exceeds where no value exceeds `largest`.
  float LargestCoefficient(float largest) const;

  // Classes and means to be expected of the segment's coefficients in units of `unit`.
  Segment Expected(const Segment& segment, float unit) const;
  void ToCoefficients(const Segment& segment, float unit, float* values);  // values are in units
  // Makes zeros of what the ranks, which are checked, do not keep, from token `first` on; nothing where there are none.
  void Truncate(const Segment& segment, std::span<const uint32_t> ranks, size_t first, float* coefficients) const;
  void ToValues(const Segment& segment, float* coefficients);

  // A block's values as the tensor has them to segments, a group's heads side by side in each token, and back, those of
  // one segment.
  void GatherHeads(size_t count, float* values);
  void ScatterHeads(const Segment& segment, float* values);

 private:
  bool gathers() const { return tensor_ != nullptr && layout_.arrangement > 1 && artifact_->group_heads > 1; }
  size_t FirstGroup(const Segment& segment) const;
  // Multiplies the rows of all groups by the transpose of `matrices`.
  void Multiply(const Segment& segment, const std::vector<float>& matrices, float* values);

  const Artifact* const artifact_;
  const TransformLayout& layout_;
  const ArtifactTensor* tensor_ = nullptr;
  bool turns_ = false;
  std::vector<float> matrix_, rows_;
};

}  // namespace kvcompress
