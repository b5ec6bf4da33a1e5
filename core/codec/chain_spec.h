#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/tensor.h"
#include "core/simd/rotary.h"

namespace kvcompress {

class CodecChain;
struct CodecEnvironment;
struct CodecRow;
struct NamedChain;
struct StageSpec;
struct StageText;

// Which codecs, with which parameters: what people write, checked. It holds no codec; Resolve makes them. A copy costs
// a reference count.
class ChainSpec {
 public:
  ChainSpec() = default;  // empty: only to be assigned to

  // A chain of stages, or one of the names of named_chains.h, perhaps with parameters. INVALID_ARGUMENT with a sentence
  // that names the fault.
  static absl::StatusOr<ChainSpec> Parse(std::string_view text);
  // A chain of stages only, as frames hold it.
  static absl::StatusOr<ChainSpec> ParseStages(std::string_view text);

  // The canonical text: every parameter, no blanks. A name that means different chains for different tensors stays the
  // name. The text parses to an equal spec.
  const std::string& text() const;
  bool operator==(const ChainSpec& other) const { return text() == other.text(); }

  // Whether it means different chains for different tensors.
  bool differs() const;

  // The chain of stages that it stands for with a tensor of this name.
  const ChainSpec& For(std::string_view tensor_name) const;
  // Of that chain.
  std::span<const StageSpec> stages() const;
  const StageSpec& tensor_codec() const;

  // That chain, which stores a block that its tensor codec refuses as it is. INVALID_ARGUMENT for too long a spec.
  absl::StatusOr<ChainSpec> WithFallback() const;

  // The chain for a tensor of this name, whose stages turn keys back by `rotary` where they have no theta of their own
  // and can (not with an artifact, which has its own), and take its start where they have none. The values of a layer,
  // by their name, turn in no model: they get the start alone. INVALID_ARGUMENT as of CheckRotary, and for too long a
  // spec.
  absl::StatusOr<ChainSpec> WithRotary(std::string_view tensor_name, const simd::RotaryEmbedding& rotary) const;
  // The chain for a tensor of this name, whose stages with an artifact keep these ranks; with none it is as it was.
  // INVALID_ARGUMENT, a sentence, without such a stage, also where chains within a stage have one, for one that has
  // ranks, and for too long a spec.
  absl::StatusOr<ChainSpec> WithRanks(std::string_view tensor_name, const std::vector<uint32_t>& ranks) const;
  // What the first stage that can turn keys back does, in that chain or within one of its stages: theta 0 where it has
  // none. Empty: there is no such stage.
  std::optional<simd::RotaryEmbedding> rotary() const;

  // The codecs for a tensor. INVALID_ARGUMENT, without the tensor's name, for one that they do not take, whatever its
  // values; one of an opaque dtype is taken by a lossless tensor codec without transforms alone.
  absl::StatusOr<CodecChain> Resolve(const CodecEnvironment& environment, const TensorDesc& tensor) const;
  // The same for a chain within a stage, which works while the outer chain does, on the same thread.
  absl::StatusOr<CodecChain> ResolvePart(const CodecEnvironment& environment, const TensorDesc& tensor) const;

 private:
  struct Parsed;
  explicit ChainSpec(std::shared_ptr<const Parsed> parsed) : parsed_(std::move(parsed)) {}

  // As ParseStages, of what stands in the text.
  static absl::StatusOr<ChainSpec> OfStages(std::string_view text, std::span<const StageText> stages);
  static absl::StatusOr<ChainSpec> OfName(const NamedChain& named);

  std::shared_ptr<const Parsed> parsed_;
};

// INVALID_ARGUMENT, "rotary: ...", for an embedding that no model has: a theta that is neither 0 nor from 1 to 1e15, an
// odd number of channels, channels or a position beyond what specs take, a scaling that simd::FaultOf names, and
// anything but a start without a theta.
absl::Status CheckRotary(const simd::RotaryEmbedding& rotary);

// One stage of a chain: a codec and its parameters.
struct StageSpec {
  static constexpr size_t kMaxParts = 32;

  // The chain of the heads from `first_head` on, up to the next part's.
  struct Part {
    uint64_t first_head;
    ChainSpec chain;
  };

  const CodecRow* codec = nullptr;
  std::vector<double> values = {};  // of the codec's parameters, in the order of its row
  std::vector<Part> parts = {};     // of a codec that takes chains within
  std::string digest = {};          // of the parameter that is one
  std::vector<uint32_t> list = {};  // likewise

  std::string text() const;   // canonical
  bool needs_tensor() const;  // whether its codec has to see the whole tensor first

  // The parameter of this name, which the codec's row must have.
  double Number(std::string_view parameter) const;
  int64_t Int(std::string_view parameter) const { return static_cast<int64_t>(Number(parameter)); }
  bool Flag(std::string_view parameter) const { return Number(parameter) != 0; }
  template <typename Enum>
  Enum Choice(std::string_view parameter) const {
    return static_cast<Enum>(Int(parameter));
  }
};

}  // namespace kvcompress
