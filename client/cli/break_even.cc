#include "client/cli/break_even.h"

#include <algorithm>

namespace kvcompress {
namespace {

BothWays Seconds(double ratio, double speed, double bytes, double bandwidth) {
  const double codec = bytes / speed;
  const double link = bytes / ratio / bandwidth;
  return {.serial = codec + link, .pipelined = std::max(codec, link)};
}

// The bandwidth at which max(bandwidth / encode, 1 / ratio) + max(bandwidth / decode, 1 / ratio) is 2: times of codec
// and link in units of what sending uncompressed takes.
double PipelinedBoth(const CodecFigures& codec) {
  const double slow = std::min(codec.encode, codec.decode);
  const double fast = std::max(codec.encode, codec.decode);
  const double codec_bound = 2 / (1 / slow + 1 / fast);  // where the codec takes the time both ways
  return codec_bound >= fast / codec.ratio ? codec_bound : slow * (2 - 1 / codec.ratio);
}

}  // namespace

BothWays StoreSeconds(const CodecFigures& codec, double bytes, double bandwidth) {
  return Seconds(codec.ratio, codec.encode, bytes, bandwidth);
}

BothWays LoadSeconds(const CodecFigures& codec, double bytes, double bandwidth) {
  return Seconds(codec.ratio, codec.decode, bytes, bandwidth);
}

BreakEven BreakEvenOf(const CodecFigures& codec) {
  if (!(codec.ratio > 1 && codec.encode > 0 && codec.decode > 0)) return {};
  const double saved = 1 - 1 / codec.ratio;  // share of the bytes
  return {.store = {.serial = codec.encode * saved, .pipelined = codec.encode},
          .load = {.serial = codec.decode * saved, .pipelined = codec.decode},
          .both = {.serial = 2 * saved / (1 / codec.encode + 1 / codec.decode), .pipelined = PipelinedBoth(codec)}};
}

}  // namespace kvcompress
