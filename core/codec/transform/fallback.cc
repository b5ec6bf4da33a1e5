#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// docs/format.md, "fallback". Passes every value on; it is the chain that gives it, as its side stream, the values of a
// block that the tensor codec refuses.
class Fallback final : public TensorTransform {
 public:
  bool lossless() const override { return true; }

  size_t MaxSideBytes(const TensorDesc& tensor, size_t count) const override { return count * DTypeSize(tensor.dtype); }

  absl::Status Forward(const Block& block, const TensorState*, const std::function<size_t(size_t)>&, Buffer& values,
                       Buffer& side) const override {
    values.Resize(block.values.size());
    std::ranges::copy(block.values, values.data());
    side.Resize(0);
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> InnerCount(size_t count, ByteSpan side) const override { return side.empty() ? count : 0; }

  absl::Status Inverse(const TensorDesc&, ByteSpan side, ByteSpan inner, MutableByteSpan values) const override {
    const ByteSpan source = side.empty() ? inner : side;
    if (source.size() != values.size()) return absl::DataLossError("fallback: not as many values as the block has");
    if (source.data() != values.data()) std::ranges::copy(source, values.begin());
    return absl::OkStatus();
  }
};

constexpr std::string_view kExamples[] = {"fallback|int4(group=64)", "fallback|quant(bits=4,per=channel)|rans",
                                          "sparse(ratio=0.5)|fallback|int8(group=64)"};

}  // namespace

extern constinit const CodecRow kFallback = {
    .name = "fallback",
    .summary = "stores a block as it is where the tensor codec refuses a value of it (NaN, infinity, too large)",
    .examples = kExamples,
    .is_fallback = true,
    .make_transform = Make<TensorTransform, Fallback>};

}  // namespace kvcompress
