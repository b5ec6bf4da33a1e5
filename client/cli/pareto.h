#pragma once

#include <span>
#include <vector>

namespace kvcompress {

struct RatePoint {
  double bits;  // per value; less is better
  double snr;   // dB; more is better, infinity without any loss
};

// For each point whether it is on the Pareto front: no other is as good in both figures and better in one. Of equal
// points only the first counts as on it.
std::vector<bool> ParetoFront(std::span<const RatePoint> points);

}  // namespace kvcompress
