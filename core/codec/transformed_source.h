#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/buffer.h"
#include "core/base/byte_source.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"

namespace kvcompress {

// A tensor's values as transforms make them, of which `state` is that of the first ones: those that a transform drops
// are zeros. Read by whole blocks.
class TransformedSource final : public ByteSource {
 public:
  TransformedSource(const TensorDesc& tensor, const ByteSource& values,
                    std::span<const std::unique_ptr<TensorTransform>> transforms, const ChainState& state)
      : tensor_(tensor), values_(values), transforms_(transforms), state_(state) {}

  uint64_t size() const override { return values_.size(); }

  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override {
    KVC_ASSIGN_OR_RETURN(ByteSpan values, values_.Get(offset, count, scratch));
    const size_t width = DTypeSize(tensor_.dtype);
    const auto no_cost = [](size_t) { return size_t{0}; };  // so that nothing is gained by leaving values out
    Buffer transformed;
    Buffer side;
    for (size_t i = 0; i < transforms_.size(); ++i) {
      const Block block{tensor_, offset / width, count / width, values};
      KVC_RETURN_IF_ERROR(transforms_[i]->Forward(block, state_[i].get(), no_cost, transformed, side));
      scratch.assign(transformed.span().begin(), transformed.span().end());
      values = scratch;
    }
    return values;
  }

 private:
  const TensorDesc& tensor_;
  const ByteSource& values_;
  const std::span<const std::unique_ptr<TensorTransform>> transforms_;
  const ChainState& state_;
};

}  // namespace kvcompress
