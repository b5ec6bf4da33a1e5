#pragma once

#include "bench/transport/measure.h"

namespace kvcompress::bench {

// Calls of so many tensors, beside calls of one tensor with the same bytes, in turns; the least of all rounds counts.
// An array, four rows for each entrant: CPU seconds of both sides for each GB, and how often threads were switched in
// a call, of compressing and decompressing.
absl::StatusOr<nlohmann::json> MeasureBatches(size_t tensors, uint64_t tensor_bytes,
                                              const std::vector<Entrant>& entrants, const Timing& timing);

}  // namespace kvcompress::bench
