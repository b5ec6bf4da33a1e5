#include "core/codec/repetitions.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace kvcompress {
namespace {

// Of the positions one in `step` is remembered, so that about so many are.
constexpr size_t kRemembered = size_t{1} << 12;
constexpr size_t kMaxStep = 16;
// All positions of a window are looked up, of one window in so many, or in fewer where there are few windows: a run
// that repeats has a remembered one at any step.
constexpr size_t kWindow = 128;
constexpr size_t kLookEvery = 32;
constexpr size_t kMinLooks = 8;

class Runs {
 public:
  Runs(ByteSpan raw, size_t run) : raw_(raw), run_(run), mask_(run < 8 ? (uint64_t{1} << 8 * run) - 1 : ~uint64_t{0}) {}

  void Remember(size_t at) {
    const uint64_t hash = Hash(at);
    entries_[hash >> (64 - kSlotBits)] = Tag(hash) | static_cast<uint32_t>(at);
  }

  bool Knows(size_t at) const {
    const uint64_t hash = Hash(at);
    const uint32_t entry = entries_[hash >> (64 - kSlotBits)];
    return (entry & kTagMask) == Tag(hash) &&
           std::memcmp(raw_.data() + (entry & ~kTagMask), raw_.data() + at, run_) == 0;
  }

 private:
  static constexpr int kSlotBits = 13;
  static constexpr uint32_t kTagMask = 0xff000000;

  uint64_t Hash(size_t at) const { return (LoadLE<uint64_t>(raw_.data() + at) & mask_) * 0x9e3779b97f4a7c15; }
  static uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 16) & kTagMask; }

  const ByteSpan raw_;
  const size_t run_;
  const uint64_t mask_;
  // A position of at most 24 bits, with bits of the hash: most of those that differ are told apart without a look at
  // them.
  std::array<uint32_t, size_t{1} << kSlotBits> entries_ = {};
};

}  // namespace

size_t RepeatingRuns(ByteSpan raw, size_t run) {
  const size_t windows = (raw.size() - std::min(raw.size(), std::max<size_t>(run, 8))) / kWindow;
  const size_t step = std::clamp<size_t>(std::bit_floor(raw.size() / kRemembered), 1, kMaxStep);
  const size_t look_every = std::clamp<size_t>(windows / kMinLooks, 1, kLookEvery);
  Runs runs(raw, run);
  size_t known = 0;
  size_t looked = 0;
  for (size_t w = 0; w < windows; ++w) {
    const size_t begin = w * kWindow;
    if (w > 0 && w % look_every == look_every - 1) {
      for (size_t at = begin; at < begin + kWindow; ++at) known += runs.Knows(at);
      looked += kWindow;
    }
    // Other ones of each window: what repeats may be some channels of each row.
    for (size_t at = begin + 5 * w % step; at < begin + kWindow; at += step) runs.Remember(at);
  }
  return looked == 0 ? 0 : std::min<size_t>(256, 256 * step * known / looked);
}

}  // namespace kvcompress
