#pragma once

#include <cstddef>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

namespace kvcompress {

// Foretells the errors of quant(per=channel,symmetric=false,group=64) from the ranges of its cells, which are all that
// a scale goes by: for all numbers of bits in one pass over the values.
class ChannelNoise {
 public:
  // `extent` is that of the tensor's last axis. Values are finite.
  ChannelNoise(DType dtype, uint64_t extent, ByteSpan values);

  // The sum of e^2, as if errors were spread evenly between -s/2 and s/2 of their cell's scale s. A cell whose scale is
  // below the steps of its largest value's dtype comes back as it was. Infinity where a block has too few rows for
  // scales of channels.
  double ErrorSquares(int bits) const;

  // Whether no scale is above the smallest number of its dtype: then more bits change no error.
  bool HasLeastScales(int bits) const;

 private:
  // Of each cell: its largest less its smallest value, and the step between neighbours of its largest magnitude.
  std::vector<double> ranges_, steps_;
  double values_per_cell_ = 0;
  double least_scale_ = 0;
};

}  // namespace kvcompress
