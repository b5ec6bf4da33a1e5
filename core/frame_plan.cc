#include "core/frame_plan.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "core/codec/rotary_parameters.h"
#include "core/codec/syntax.h"

namespace kvcompress {

static_assert(kMaxSpecBytes == kMaxCodecBytes);

namespace {

// As `parse`. Tensors that follow one another mostly have one spec: this thread's last one is not parsed again.
template <absl::StatusOr<ChainSpec> (*parse)(std::string_view)>
absl::StatusOr<ChainSpec> ParseOnce(std::string_view text) {
  thread_local std::optional<std::pair<std::string, ChainSpec>> last;
  if (!last || last->first != text) {
    KVC_ASSIGN_OR_RETURN(ChainSpec spec, parse(text));
    last.emplace(text, std::move(spec));
  }
  return last->second;
}

}  // namespace

absl::Status CheckTensorBytes(uint64_t bytes, const Limits& limits) {
  if (bytes <= limits.max_tensor_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("%d bytes are above the limit of %d", bytes, limits.max_tensor_bytes));
}

uint64_t FramePlan::BlockBytes(uint64_t index) const {
  const size_t prefix = index == 0 ? header_bytes.size() : 0;
  const size_t end = index + 1 == header.block_count() ? header.end_bytes() : 0;
  return prefix + header.block_header_bytes() + chain.MaxPayloadBytes(header.tensor, header.BlockElements(index)) + end;
}

uint64_t FramePlan::MaxFrameBytes() const {
  const uint64_t blocks = header.block_count();
  if (blocks == 0) return header_bytes.size() + header.end_bytes();
  if (blocks == 1) return BlockBytes(0);
  const uint64_t inner = header.block_header_bytes() + chain.MaxPayloadBytes(header.tensor, header.block_elements);
  return BlockBytes(0) + (blocks - 2) * inner + BlockBytes(blocks - 1);
}

absl::StatusOr<std::string> WithFallback(const TensorDesc& tensor, std::string_view codec) {
  KVC_RETURN_IF_ERROR(ValidateTensor(tensor).status());
  if (IsOpaque(tensor.dtype)) return std::string(codec);  // whose bits no codec refuses
  const auto add = [&]() -> absl::StatusOr<std::string> {
    KVC_ASSIGN_OR_RETURN(const ChainSpec spec, ChainSpec::Parse(codec));
    const ChainSpec& own = spec.For(tensor.name);
    KVC_ASSIGN_OR_RETURN(const CodecChain chain, own.Resolve({}, tensor));
    if (!chain.refuses_values()) return own.text();
    KVC_ASSIGN_OR_RETURN(const ChainSpec with, own.WithFallback());
    return with.text();
  };
  absl::StatusOr<std::string> text = add();
  return text.ok() ? text : OfTensor(tensor.name, text.status());
}

absl::StatusOr<std::string> WithRotary(const TensorDesc& tensor, std::string_view codec,
                                       const simd::RotaryEmbedding& rotary) {
  if (IsOpaque(tensor.dtype)) return std::string(codec);
  const auto add = [&]() -> absl::StatusOr<std::string> {
    KVC_ASSIGN_OR_RETURN(const ChainSpec spec, ChainSpec::Parse(codec));
    KVC_ASSIGN_OR_RETURN(const ChainSpec with, spec.WithRotary(tensor.name, rotary));
    if (with.rotary() != spec.For(tensor.name).rotary()) KVC_RETURN_IF_ERROR(CheckRotaryFits(rotary, tensor));
    return with.text();
  };
  absl::StatusOr<std::string> text = add();
  return text.ok() ? text : OfTensor(tensor.name, text.status());
}

absl::StatusOr<FramePlan> PlanFrame(TensorDesc tensor, std::string_view codec, const Limits& limits) {
  FramePlan plan;
  KVC_ASSIGN_OR_RETURN(const uint64_t words, ValidateTensor(tensor));
  const absl::Status size = CheckTensorBytes(words * DTypeSize(tensor.dtype), limits);
  if (!size.ok()) return OfTensor(tensor.name, size);
  const absl::StatusOr<ChainSpec> spec = ParseOnce<ChainSpec::Parse>(codec);
  if (!spec.ok()) return OfTensor(tensor.name, spec.status());
  absl::StatusOr<CodecChain> chain = spec->Resolve(limits.environment, tensor);
  // Whatever was asked for, an opaque tensor is kept.
  if (IsOpaque(tensor.dtype) && absl::IsInvalidArgument(chain.status())) {
    chain = ChainSpec::Parse(kOpaqueChain)->Resolve(limits.environment, tensor);
  }
  if (!chain.ok()) return OfTensor(tensor.name, chain.status());
  plan.chain = *std::move(chain);
  plan.header.tensor = std::move(tensor);
  plan.header.codec = plan.chain.spec();
  plan.header.is_compact =
      FindCodec(plan.chain.codec_name())->has_compact_frames && MayBeCompact(plan.header.tensor, words);
  plan.header.block_elements =
      plan.header.is_compact ? kMaxCompactElements : plan.chain.BlockElements(plan.header.tensor);
  plan.chain.set_compact(plan.header.is_compact);
  plan.header_bytes = SerializeFrameHeader(plan.header);
  return plan;
}

absl::StatusOr<uint64_t> MaxFrameBytes(const TensorDesc& tensor, std::string_view codec) {
  KVC_ASSIGN_OR_RETURN(const FramePlan plan, PlanFrame(tensor, codec, kNoLimits));
  return plan.MaxFrameBytes();
}

void Describe(const FrameHeader& header, const CodecChain& chain, TensorReport& report) {
  report.tensor = header.tensor;
  report.codec = chain.spec();
  report.codec_name = chain.codec_name();
  report.elements = header.elements;
  report.passed_through = IsOpaque(header.tensor.dtype);
  report.tensor_bytes = header.tensor_bytes();
}

absl::StatusOr<size_t> EncodeFrameBlock(const FrameHeader& header, const CodecChain& chain, const ChainState& state,
                                        uint64_t index, const BlockValues& values, MutableByteSpan block,
                                        ErrorSums* sums, TokenSums* tokens) {
  const Block run{header.tensor, index * header.block_elements, header.BlockElements(index), values.whole,
                  values.pieces};
  const MutableByteSpan payload = block.subspan(header.block_header_bytes());
  KVC_ASSIGN_OR_RETURN(const size_t payload_bytes, chain.EncodeBlock(run, state, payload, sums, tokens));
  WriteBlockHeader(header, index, payload.first(payload_bytes), block.data());
  return header.block_header_bytes() + payload_bytes;
}

absl::StatusOr<CodecChain> ChainOfFrame(const FrameHeader& header, const CodecEnvironment& environment) {
  const absl::StatusOr<ChainSpec> spec = ParseOnce<ChainSpec::ParseStages>(header.codec);
  if (!spec.ok()) return absl::UnimplementedError(absl::StrCat("frame: ", spec.status().message()));
  // A frame says all of itself: who has it may call its tensor otherwise than an artifact does.
  TensorDesc nameless = header.tensor;
  nameless.name.clear();
  absl::StatusOr<CodecChain> chain = spec->Resolve(environment, nameless);
  if (absl::IsInvalidArgument(chain.status())) {
    return absl::DataLossError(absl::StrCat("frame: ", chain.status().message()));
  }
  if (chain.ok()) chain->set_compact(header.is_compact);
  return chain;
}

absl::Status FrameEndsEarly(uint64_t bytes, uint64_t told) {
  return absl::InvalidArgumentError(absl::StrFormat("the frame ends after %d of %d bytes", bytes, told));
}

absl::Status BytesBehindFrame(uint64_t count) {
  return absl::InvalidArgumentError(absl::StrFormat("%d bytes behind the frame's end mark", count));
}

absl::Status DecodeFrameBlock(const FrameHeader& header, const CodecChain& chain, const FrameBlock& block,
                              MutableByteSpan values) {
  // Decoding trusts nothing, so the checksum can wait until its pass finds the payload in cache.
  const absl::Status decoded = chain.DecodeBlock(header.tensor, block.payload, values);
  KVC_RETURN_IF_ERROR(VerifyBlock(header, block));
  if (decoded.ok()) return absl::OkStatus();
  return absl::Status(decoded.code(), absl::StrCat("frame: block ", block.index, ": ", decoded.message()));
}

}  // namespace kvcompress
