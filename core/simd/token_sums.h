#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/tensor.h"
#include "core/simd/error_sums.h"

// The figures of ErrorSums that are about tokens, for tensors that have a seq axis and a head_dim axis.
//
// Such a tensor is read as [sequences, tokens, channels]: the extents before its seq axis, that axis, and the extents
// behind it. A channel of a sequence has as many values as there are tokens; its means of x and of e are what attention
// does not see of a key. Values of x that are not finite are left out; an error that is not finite makes
// token_error_deviations infinite.
//
// A tensor is measured in runs, its blocks, on any thread. What a run has of a sequence is a stretch. Sequences that
// lie in one run become sums at once; of those that begin or end in another run, two at most, each channel's moments
// are kept until the runs are put together in their order.
namespace kvcompress {

namespace simd {
struct MomentTotals;
}

struct TokenLayout {
  uint64_t tokens = 0;
  uint64_t channels = 0;

  // A tensor of more channels has no figures about tokens.
  static constexpr uint64_t kMaxChannels = uint64_t{1} << 16;

  uint64_t sequence() const { return tokens * channels; }  // values of one
  bool has_tokens() const { return sequence() > 0; }
};

// Without tokens where there is not one seq axis, no head_dim axis, no value, or more channels than kMaxChannels; and
// of opaque dtypes.
TokenLayout TokenLayoutOf(const TensorDesc& tensor);

// Of each of some channels: the number of its values, the mean of x, the sum of (x - mean)^2, and the mean of e.
enum MomentPlane { kCount, kMean, kDeviations, kErrorMean, kMomentPlanes };

class ChannelMoments {
 public:
  size_t size() const { return size_; }
  // Of `size` channels without values.
  void Assign(size_t size);
  // Of `size` channels, whose moments are to be set.
  void Begin(size_t size);
  // Leaves the first `size` channels.
  void Shrink(size_t size) { size_ = size; }

  double* plane(MomentPlane plane) { return moments_.data() + plane * stride_; }
  const double* plane(MomentPlane plane) const { return moments_.data() + plane * stride_; }

  // Of e, the sum of (e - mean)^2 is needed over all channels alone.
  double error_deviations() const { return error_deviations_; }
  void AddErrorDeviations(double sum) { error_deviations_ += sum; }

  // Of values and errors that were multiplied by these, powers of two.
  void Unscale(double value, double error);
  // Adds those of `count` channels of `other`, from `first` on, to the own from `to` on: Chan, Golub, LeVeque 1983.
  // The error deviations within the channels of `other` are left to be added.
  void Merge(const ChannelMoments& other, size_t first, size_t count, size_t to);
  // Adds what the channels, which are those of a whole sequence, come to. Their totals are TotalsOf.
  void AddTo(ErrorSums& sums) const;
  void AddTo(ErrorSums& sums, const simd::MomentTotals& totals) const;

 private:
  std::vector<double> moments_;
  double error_deviations_ = 0;
  size_t stride_ = 0;
  size_t size_ = 0;
};

struct TokenStretch {
  uint64_t first = 0;  // index of its first value in the sequence
  uint64_t count = 0;  // of values, measured or left out; 0: there is no such stretch
  // From the first value's channel on, as many as the stretch has values of.
  ChannelMoments channels;

  void Clear();
};

// Of a run.
struct TokenSums {
  ErrorSums closed;   // of whole sequences, in the fields that are about tokens
  TokenStretch head;  // begins within a sequence
  TokenStretch tail;  // begins a sequence and does not end it

  void Clear();
};

// Of the runs of a tensor, from its first on.
class TokenTotals {
 public:
  void Begin(const TokenLayout& layout);
  // Adds the run that follows.
  void Merge(const TokenSums& run);
  // Adds what all runs came to.
  void AddTo(ErrorSums& sums) const { sums.Merge(closed_); }

 private:
  void Join(const TokenStretch& next);

  TokenLayout layout_;
  ErrorSums closed_;
  TokenStretch open_;  // of all channels
};

}  // namespace kvcompress
