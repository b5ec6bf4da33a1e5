#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

// Rotary position embedding (docs/format.md, "Rotary"): of a row's channels that turn, pair i turns by position *
// theta^(-2 i / dims) radians, or more slowly where it is scaled. Exact to about 2^-23 and, in any order and on any
// CPU, equal to the bit: basic operations only, never fused.
namespace kvcompress::simd {

// Which channels of the `dims` that turn are pair i: i and i + dims / 2, or 2 i and 2 i + 1.
enum class RotaryPairs { kHalf, kInterleaved };

// How a model that serves longer contexts than it was first trained on slows pairs down: all of them `factor` times
// (kLinear), or those that turn less than `low` times within the `original` tokens, while those that turn more than
// `high` times stay as they are, and between the two there are steps (kLlama3, kYarn).
struct RotaryScaling {
  enum class Kind { kNone, kLinear, kLlama3, kYarn };

  Kind kind = Kind::kNone;
  double factor = 0;  // 1 to 10^6; of the other kinds 0
  // Of kLlama3 and kYarn; of the other kinds 0.
  double low = 0;         // from 10^-6 on
  double high = 0;        // above low, at most 10^6
  uint64_t original = 0;  // from 1 on

  bool operator==(const RotaryScaling&) const = default;
};

// What is wrong with a scaling whose numbers are not within these bounds, or of a kYarn whose theta is 1; empty:
// nothing.
std::string_view FaultOf(const RotaryScaling& scaling, double theta);

// The scaling with what models have as a rule in place of a `low`, `high` or `original` of 0: 1; 4 (kLlama3) or 32
// (kYarn); 8192 (kLlama3). A yarn's `original` is each model's own.
RotaryScaling WithUsual(RotaryScaling scaling);

// What a model does to its keys before attention: of each head the `dims` channels from `offset` on turn. Which sources
// tell it, and in which order: docs/cli.md, "Rotary embeddings".
struct RotaryEmbedding {
  double theta = 0;  // 0: nothing turns, or it is not known
  RotaryPairs pairs = RotaryPairs::kHalf;
  uint64_t dims = 0;  // 0: all from `offset` on
  uint64_t offset = 0;
  uint64_t start = 0;  // position of a tensor's first token
  RotaryScaling scaling = {};

  bool operator==(const RotaryEmbedding&) const = default;
};

// What undoing the embedding brought to runs of tokens, by the variances of their channels.
struct RotaryGain {
  uint64_t values = 0;  // of runs that can be turned back
  uint64_t turned = 0;  // of those that were
  double bits = 0;      // that these save: half the binary logarithm of how much less their variances are

  void Merge(const RotaryGain& other) {
    values += other.values;
    turned += other.turned;
    bits += other.bits;
  }
  bool operator==(const RotaryGain&) const = default;
};

// kForward is what the model does to its keys; kBack undoes it.
enum class RotaryTurn { kForward, kBack };

// theta^(-2 pair / dims) / (2 pi), turns a token, scaled, in units of 2^-64. theta >= 1; dims even, above 2 pair; the
// scaling without a fault.
uint64_t RotaryFrequency(double theta, const RotaryScaling& scaling, size_t dims, size_t pair);

// Cosines and sines for a run of positions.
class RotaryTable {
 public:
  // For positions first .. first + tokens - 1 (mod 2^64), of the embedding's theta and scaling. Costs nothing for those
  // that a table from the same position on has already.
  void Make(const RotaryEmbedding& rotary, size_t dims, uint64_t first, size_t tokens);

  size_t pairs() const { return frequencies_.size(); }
  size_t tokens() const { return tokens_; }
  // pairs() cosines, and as many sines after them, of the token at `first` + `token`.
  const float* row(size_t token) const { return values_.data() + 2 * pairs() * token; }

 private:
  double theta_ = 0;
  RotaryScaling scaling_;
  uint64_t first_ = 0;
  size_t tokens_ = 0;
  std::vector<uint64_t> frequencies_;
  std::vector<uint64_t> turns_;  // of the token at hand, in units of 2^-64
  std::vector<uint32_t> phases_;
  std::vector<float> values_;
};

// Cosines and sines of `count` phases, in units of 2^-32 of a turn.
void CosSin(const uint32_t* phases, size_t count, float* cosines, float* sines);

// Turns `count` rows, `stride` floats apart, in place: row r, whose first 2 table.pairs() floats turn, by the table's
// token first_token + r.
void TurnRows(const RotaryTable& table, size_t first_token, RotaryPairs pairs, RotaryTurn turn, float* rows,
              size_t count, size_t stride);

namespace scalar {
void CosSin(const uint32_t* phases, size_t count, float* cosines, float* sines);
void TurnRows(const RotaryTable& table, size_t first_token, RotaryPairs pairs, RotaryTurn turn, float* rows,
              size_t count, size_t stride);
}  // namespace scalar

}  // namespace kvcompress::simd
