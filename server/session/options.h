#pragma once

#include <cstdint>
#include <string>

#include "core/frame/frame.h"
#include "core/tensor_report.h"
#include "server/shm/regions.h"

namespace kvcompress {

class CompressPlans;

struct SessionOptions {
  Limits limits;
  std::string default_codec = "int4(group=64)";
  // How many bytes of tensors a stream holds before it stops taking input: blocks in the pool, and responses that the
  // client has not taken. Tensors that a codec must see whole come on top.
  uint64_t window_bytes = 0;
  const RegionTable* regions = nullptr;  // null: no shared memory
  CompressPlans* plans = nullptr;        // of calls for one tensor; null: none are kept
};

// A window for a pool of this many threads: for each thread two blocks of F16, one in work and one waiting, and eight
// blocks (2 MiB) for what is on its way in and out meanwhile.
constexpr uint64_t DefaultWindowBytes(size_t threads) {
  return (8 + 2 * uint64_t{threads}) * kDefaultBlockElements * 2;
}

}  // namespace kvcompress
