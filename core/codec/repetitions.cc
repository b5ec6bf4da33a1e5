#include "core/codec/repetitions.h"

#include <algorithm>
#include <array>
#include <bit>

namespace kvcompress {
namespace {

// Runs are looked for in steps of a quarter of a unit, which is 64 values or, in small streams, less: rows have
// multiples of 16 values, mostly. Of each unit one run is remembered, and each eighth unit is looked up,
// or as many as a sample needs.
constexpr size_t kMaxUnit = 64;
constexpr size_t kMinUnit = 16;
constexpr size_t kSteps = 4;
constexpr size_t kLookEvery = 8;
constexpr size_t kLooks = 128;
constexpr size_t kUnits = 512;

class Runs {
 public:
  Runs(ByteSpan values, size_t bytes, uint64_t mask) : values_(values), bytes_(bytes), mask_(mask) {
    begins_.fill(kNone);
  }

  void Remember(size_t at) { begins_[Slot(at)] = static_cast<uint32_t>(at); }

  bool Knows(size_t at) const {
    const uint32_t before = begins_[Slot(at)];
    if (before == kNone) return false;
    for (size_t k = 0; k < bytes_; k += 8) {
      if (Word(before + k) != Word(at + k)) return false;
    }
    return true;
  }

 private:
  static constexpr int kSlotBits = 12;
  static constexpr uint32_t kNone = ~uint32_t{0};

  uint64_t Word(size_t at) const { return LoadLE<uint64_t>(values_.data() + at) & mask_; }

  size_t Slot(size_t at) const {
    uint64_t mixed = 0;
    for (size_t k = 0; k < bytes_; k += 8) mixed = std::rotl(mixed, 11) ^ Word(at + k);
    return mixed * 0x9e3779b97f4a7c15 >> (64 - kSlotBits);
  }

  const ByteSpan values_;
  const size_t bytes_;
  const uint64_t mask_;
  std::array<uint32_t, size_t{1} << kSlotBits> begins_;
};

}  // namespace

size_t RepeatingRuns(ByteSpan values, size_t width, size_t run, uint64_t mask) {
  const size_t count = values.size() / width;
  const size_t unit = std::clamp<size_t>(std::bit_floor(count / kUnits), kMinUnit, kMaxUnit);
  const size_t step = unit / kSteps;
  const size_t look_every = std::max(kLookEvery, count / unit / kLooks);
  Runs runs(values, run * width, mask);
  size_t found = 0;
  size_t looked = 0;
  for (size_t i = 0; (i + 1) * unit + run <= count; ++i) {
    if (i % look_every == 0) {
      bool known = false;
      for (size_t k = 0; k < unit && !known; k += step) known = runs.Knows((i * unit + k) * width);
      found += known;
      ++looked;
    }
    // Another step of each unit, so that runs anywhere in rows of a whole number of units are seen.
    runs.Remember((i * unit + (i + i / kSteps + i / (kSteps * kSteps)) % kSteps * step) * width);
  }
  return looked == 0 ? 0 : 256 * found / looked;
}

}  // namespace kvcompress
