// Quantizes groups in rows to 4-bit codes and adds the columns' sums in the same pass: no error is stored, to be loaded
// again, and sums stay in registers from row to row. For the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_GROUP_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_GROUP_ROWS_INL_H_
#undef KVCOMPRESS_SIMD_GROUP_ROWS_INL_H_
#else
#define KVCOMPRESS_SIMD_GROUP_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "core/simd/column_sums-inl.h"
#include "core/simd/group_codes-inl.h"
#include "core/simd/group_encode-inl.h"
#include "core/simd/half-inl.h"
#include "core/simd/pack-inl.h"
#include "core/simd/scales-inl.h"
#include "core/simd/token_meter.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Whether there are registers for it: for all sums of two vectors.
constexpr bool kQuantizesRows = KVC_TARGET_AVX512;
static_assert(!kQuantizesRows || kLanes == 16);

// So many groups are quantized together.
constexpr size_t kMostRowGroups = 4 * kTileGroups;

// What the codes of groups are made with, none of which is unusual, and decoded with.
template <DType kT>
struct RowScales {
  HWY_ALIGN float divisor[kMostRowGroups];
  Decoder<kT, true> decode[kMostRowGroups];

  // Those of a tile for its groups, from the group `begin` on.
  HWY_INLINE void Set(size_t begin, const Tile& tile) {
    std::memcpy(divisor + begin, tile.divisor, sizeof(tile.divisor));
    for (size_t g = 0; g < kTileGroups; ++g) decode[begin + g] = Decoder<kT, true>(tile.scale[g]);
  }
};

// Rows of `row_groups` groups of `group` values each, where their codes go, and what these are made with.
template <DType kT>
struct GroupRows {
  const uint8_t* values;
  uint8_t* codes;
  const float* divisor;
  const Decoder<kT, true>* decode;
  size_t rows;
  size_t row_groups;
  size_t group;

  // As many rows that follow.
  GroupRows Next() const {
    const size_t groups = rows * row_groups;
    return {values + groups * group * DTypeSize(kT),
            codes + groups * group / 2,
            divisor + groups,
            decode + groups,
            rows,
            row_groups,
            group};
  }
};

// Of one group of each row, 16 columns from `column` on and those whose codes lie in the same bytes, for AddStrip.
template <DType kT>
class QuantizedStrip {
 public:
  HWY_INLINE QuantizedStrip(const GroupRows<kT>& rows, size_t group, size_t column)
      : values_(rows.values + (group * rows.group + column) * kSize),
        codes_(rows.codes + group * rows.group / 2 + column),
        divisor_(rows.divisor + group),
        decode_(rows.decode + group),
        to_upper_(rows.group / 2 * kSize),
        row_bytes_(rows.row_groups * rows.group * kSize),
        row_code_bytes_(rows.row_groups * rows.group / 2),
        row_groups_(rows.row_groups) {
    // Strips ask for what lies ahead one after another, each line once.
    const size_t strip = (group * rows.group / 2 + column) / kLanes;
    ahead_ = rows.values + strip * rows.rows * kAheadBytes;
  }

  HWY_INLINE void Load(size_t k, VF& value, VF& error, VF& change) {
    value = LoadF32<kT>(DF(), values_ + k * to_upper_);
    const Codes codes = Round<kT>(value, hn::Set(DF(), *divisor_));
    change = error = hn::Sub(value, (*decode_)(codes));
    bits_[k] = codes.bits;
  }
  HWY_INLINE void Advance() {
    const VU bytes[16 / kLanes] = {hn::OrAnd(hn::ShiftLeft<4>(bits_[1]), bits_[0], hn::Set(DU(), 15))};
    StoreLowBytes(bytes, codes_);
    PrefetchAhead<kPrefetchBytes>(ahead_, kAheadBytes);
    values_ += row_bytes_;
    codes_ += row_code_bytes_;
    divisor_ += row_groups_;
    decode_ += row_groups_;
    ahead_ += kAheadBytes;
  }

 private:
  static constexpr size_t kSize = DTypeSize(kT);
  static constexpr size_t kAheadBytes = 2 * kLanes * kSize;

  const uint8_t* values_;
  uint8_t* codes_;
  const float* divisor_;
  const Decoder<kT, true>* decode_;
  const uint8_t* ahead_;
  const size_t to_upper_, row_bytes_, row_code_bytes_, row_groups_;
  VU bits_[2];  // of the row's codes
};

// Quantizes rows, which are the next ones of `tokens`, and adds their values and errors there.
template <DType kT>
HWY_NOINLINE void QuantizeRows(GroupRows<kT> rows, TokenMeter& tokens) {
  for (size_t left = rows.rows; left > 0; left -= rows.rows, rows = rows.Next()) {
    const ChunkRows chunk = tokens.BeginRows(left);
    rows.rows = chunk.rows;
    for (size_t group = 0; group < rows.row_groups; ++group) {
      for (size_t column = 0; column < rows.group / 2; column += kLanes) {
        const QuantizedStrip<kT> strip(rows, group, column);
        AddStrip<kT, Errors::kGiven, DF, 2>(strip, chunk.rows, chunk.first, chunk.blocks, group * rows.group + column,
                                            rows.group / 2);
      }
    }
    tokens.EndRows(kT, chunk);
  }
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
