#pragma once

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/base/byte_source.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"
#include "core/simd/error_sums.h"
#include "core/simd/token_sums.h"

namespace kvcompress {

// A tensor's values, coded by a chain as the daemon does it: block by block, with all figures. All blocks are whole.
// Chain and values have to outlive it.
class ChainBlocks {
 public:
  ChainBlocks(const CodecChain& chain, TensorDesc tensor, ByteSpan values)
      : tensor_(std::move(tensor)),
        chain_(chain),
        values_(values),
        block_bytes_(kDefaultBlockElements * DTypeSize(tensor_.dtype)),
        payloads_(values.size() / block_bytes_,
                  std::vector<std::byte>(chain_.MaxPayloadBytes(tensor_, kDefaultBlockElements))),
        sizes_(payloads_.size()) {}

  // What the chain has to know of the whole tensor before Encode.
  absl::Status Analyze() {
    KVC_ASSIGN_OR_RETURN(state_, chain_.Analyze(tensor_, MemorySource(values_), kDefaultBlockElements));
    return absl::OkStatus();
  }

  absl::Status Encode(ErrorSums& sums) {
    totals_.Begin(TokenLayoutOf(tensor_));
    for (size_t i = 0; i < payloads_.size(); ++i) {
      const Block block = {tensor_, i * kDefaultBlockElements, kDefaultBlockElements,
                           values_.subspan(i * block_bytes_, block_bytes_)};
      KVC_ASSIGN_OR_RETURN(sizes_[i], chain_.EncodeBlock(block, state_, payloads_[i], &sums, &tokens_));
      totals_.Merge(tokens_);
    }
    totals_.AddTo(sums);
    return absl::OkStatus();
  }

  // Fills `values` with what Encode has made.
  absl::Status Decode(MutableByteSpan values) const {
    for (size_t i = 0; i < payloads_.size(); ++i) {
      KVC_RETURN_IF_ERROR(chain_.DecodeBlock(tensor_, ByteSpan(payloads_[i]).first(sizes_[i]),
                                             values.subspan(i * block_bytes_, block_bytes_)));
    }
    return absl::OkStatus();
  }

 private:
  const TensorDesc tensor_;
  const CodecChain& chain_;
  const ByteSpan values_;
  const size_t block_bytes_;
  ChainState state_;
  TokenSums tokens_;
  TokenTotals totals_;
  std::vector<std::vector<std::byte>> payloads_;
  std::vector<size_t> sizes_;
};

}  // namespace kvcompress
