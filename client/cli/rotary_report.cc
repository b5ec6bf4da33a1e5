#include "client/cli/rotary_report.h"

#include <string_view>

#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

std::string_view PairsName(simd::RotaryPairs pairs) {
  return pairs == simd::RotaryPairs::kHalf ? "half" : "interleaved";
}

}  // namespace

std::string RotaryLine(const RotaryUse& use) {
  return absl::StrFormat("rotary: theta %g, pairs %s, dims %d, offset %d, start %d, from %s\n", use.rotary.theta,
                         PairsName(use.rotary.pairs), use.rotary.dims, use.rotary.offset, use.rotary.start, use.source);
}

nlohmann::ordered_json RotaryJson(const RotaryUse& use) {
  return {{"theta", use.rotary.theta}, {"pairs", PairsName(use.rotary.pairs)},
          {"dims", use.rotary.dims},   {"offset", use.rotary.offset},
          {"start", use.rotary.start}, {"from", use.source}};
}

}  // namespace kvcompress
