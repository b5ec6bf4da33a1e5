#pragma once

#include <string>

// What a codec gains or costs where caches go over a link. Sending uncompressed is taken to cost no CPU time, and a
// link to be always as fast as it is said to be: bandwidths are bytes a second, and so are speeds, of uncompressed
// bytes.
namespace kvcompress {

struct Link {
  std::string text;  // as it was given: 25Gbit/s
  double bandwidth = 0;
};

struct CodecFigures {
  double ratio = 1;  // uncompressed bytes / compressed bytes
  double encode = 0;
  double decode = 0;
};

// By how codec and link work together. Serial: one after the other. Pipelined: both at once, so that the slower one
// takes the time.
struct BothWays {
  double serial = 0;
  double pipelined = 0;
};

// Seconds from `bytes` of values to all of their frames at the other end of the link, and back.
BothWays StoreSeconds(const CodecFigures& codec, double bytes, double bandwidth);
BothWays LoadSeconds(const CodecFigures& codec, double bytes, double bandwidth);

// The bandwidths below which the codec takes less time than sending uncompressed does; 0: it never does.
struct BreakEven {
  BothWays store;
  BothWays load;
  BothWays both;  // to store once and to load once
};
BreakEven BreakEvenOf(const CodecFigures& codec);

}  // namespace kvcompress
