#include "core/tensor_compressor.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/byte_source.h"
#include "core/base/status_macros.h"
#include "core/simd/token_sums.h"

namespace kvcompress {
namespace {

// An empty table of this thread's, whose memory is there from the call before.
std::vector<uint32_t>& NoPayloadSizes() {
  thread_local std::vector<uint32_t> sizes;
  sizes.clear();
  return sizes;
}

// The sums about tokens, block by block, with memory that is there from the call before.
struct Tokens {
  TokenSums block;
  TokenTotals totals;
};

Tokens& NoTokens(const TensorDesc& tensor) {
  thread_local Tokens tokens;
  tokens.totals.Begin(TokenLayoutOf(tensor));
  return tokens;
}

}  // namespace

absl::StatusOr<TensorCompressor> TensorCompressor::Create(TensorDesc tensor, std::string_view codec,
                                                          const Limits& limits) {
  KVC_ASSIGN_OR_RETURN(FramePlan plan, PlanFrame(std::move(tensor), codec, limits));
  return TensorCompressor(std::move(plan));
}

absl::Status TensorCompressor::CheckSizes(uint64_t value_bytes, uint64_t frame_bytes) const {
  if (value_bytes != tensor_bytes()) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": %d bytes instead of the %d that its shape says",
                                                      tensor().name, value_bytes, tensor_bytes()));
  }
  if (frame_bytes < max_frame_bytes_) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": room for %d bytes of a frame that may take %d",
                                                      tensor().name, frame_bytes, max_frame_bytes_));
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> TensorCompressor::Compress(ByteSpan values, MutableByteSpan frame, ErrorSums* sums) const {
  KVC_RETURN_IF_ERROR(CheckSizes(values.size(), frame.size()));
  const FrameHeader& header = plan_.header;
  KVC_ASSIGN_OR_RETURN(const ChainState state,
                       plan_.chain.Analyze(tensor(), MemorySource(values), header.block_elements));
  std::vector<uint32_t>& payload_sizes = NoPayloadSizes();
  ErrorSums total;
  Tokens& tokens = NoTokens(tensor());
  std::memcpy(frame.data(), plan_.header_bytes.data(), plan_.header_bytes.size());
  size_t written = plan_.header_bytes.size();
  for (uint64_t i = 0; i < header.block_count(); ++i) {
    const size_t value_bytes = header.BlockElements(i) * DTypeSize(tensor().dtype);
    ErrorSums own;  // merged block by block, as the streams do: the sums are equal to the last bit
    KVC_ASSIGN_OR_RETURN(
        const size_t block_bytes,
        EncodeFrameBlock(header, plan_.chain, state, i, {.whole = values.first(value_bytes)}, frame.subspan(written),
                         sums != nullptr ? &own : nullptr, sums != nullptr ? &tokens.block : nullptr));
    total.Merge(own);
    if (sums != nullptr) tokens.totals.Merge(tokens.block);
    values = values.subspan(value_bytes);
    written += block_bytes;
    payload_sizes.push_back(static_cast<uint32_t>(block_bytes - plan_.header.block_header_bytes()));
  }
  WriteFrameEnd(header, payload_sizes, frame.data() + written);
  if (sums != nullptr) {
    tokens.totals.AddTo(total);
    *sums = total;
  }
  return written + header.end_bytes();
}

uint64_t TensorCompressor::FallbackBlocks(ByteSpan frame) const {
  if (!plan_.chain.has_fallback()) return 0;
  uint64_t count = 0;
  frame = frame.subspan(plan_.header_bytes.size());
  for (uint64_t i = 0; i < header().block_count(); ++i) {
    const size_t payload_bytes = ReadBlockHeader(header(), frame.data()).payload_bytes;
    frame = frame.subspan(header().block_header_bytes());
    if (plan_.chain.FellBack(frame.first(payload_bytes))) ++count;
    frame = frame.subspan(payload_bytes);
  }
  return count;
}

absl::StatusOr<size_t> TensorCompressor::CompressPieces(std::span<const ByteSpan> pieces, MutableByteSpan frame,
                                                        ErrorSums* sums) const {
  uint64_t value_bytes = 0;
  for (const ByteSpan& piece : pieces) value_bytes += piece.size();
  KVC_RETURN_IF_ERROR(CheckSizes(value_bytes, frame.size()));
  const size_t prefix = plan_.header_bytes.size();
  std::memcpy(frame.data(), plan_.header_bytes.data(), prefix);
  ErrorSums own;
  Tokens& tokens = NoTokens(tensor());
  KVC_ASSIGN_OR_RETURN(const size_t block_bytes,
                       EncodeFrameBlock(plan_.header, plan_.chain, {}, 0, {.pieces = pieces}, frame.subspan(prefix),
                                        sums != nullptr ? &own : nullptr, sums != nullptr ? &tokens.block : nullptr));
  std::vector<uint32_t>& payload_sizes = NoPayloadSizes();
  payload_sizes.push_back(static_cast<uint32_t>(block_bytes - plan_.header.block_header_bytes()));
  WriteFrameEnd(plan_.header, payload_sizes, frame.data() + prefix + block_bytes);
  if (sums != nullptr) {
    tokens.totals.Merge(tokens.block);
    tokens.totals.AddTo(own);
    *sums = own;
  }
  return prefix + block_bytes + plan_.header.end_bytes();
}

}  // namespace kvcompress
