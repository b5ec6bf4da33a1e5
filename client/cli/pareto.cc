#include "client/cli/pareto.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>

namespace kvcompress {

std::vector<bool> ParetoFront(std::span<const RatePoint> points) {
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return points[a].bits != points[b].bits ? points[a].bits < points[b].bits : points[a].snr > points[b].snr;
  });
  std::vector<bool> front(points.size(), false);
  double best = -std::numeric_limits<double>::infinity();
  for (const size_t i : order) {
    if (!(points[i].snr > best)) continue;
    best = points[i].snr;
    front[i] = true;
  }
  return front;
}

}  // namespace kvcompress
