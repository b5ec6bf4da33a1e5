#pragma once

#include <prometheus/metric_family.h>

#include <vector>

namespace kvcompress {

// The process_* metrics that every Prometheus client library has, and resident memory by what is behind it. A figure
// that /proc does not give is left out.
void AppendProcessMetrics(std::vector<prometheus::MetricFamily>& families);

}  // namespace kvcompress
