#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"
#include "core/codec/registry.h"

namespace kvcompress::testing {

// Every example of every registered codec.
inline std::vector<std::string_view> AllExampleSpecs() {
  std::vector<std::string_view> specs;
  for (const CodecRow* row : AllCodecs()) specs.insert(specs.end(), row->examples.begin(), row->examples.end());
  return specs;
}

// A tensor that every codec takes: each of its values is a head.
inline TensorDesc MakeTensorOfHeads(DType dtype, size_t count) {
  return {.name = "t", .dtype = dtype, .shape = {count}, .axes = {AxisRole::kHeads}};
}

// A chain for a tensor that every codec takes.
inline CodecChain MakeChain(std::string_view spec, const TensorDesc& tensor = MakeTensorOfHeads(DType::kF16, 1)) {
  return *ChainSpec::Parse(spec)->Resolve({}, tensor);
}

// A byte codec with its default parameters.
inline std::unique_ptr<ByteCodec> MakeByteCodec(std::string_view name) {
  const ChainSpec spec = *ChainSpec::Parse("raw|" + std::string(name));
  const StageSpec& stage = spec.stages().back();
  return *stage.codec->make_byte_codec({stage, {}, {}});
}

// One tensor that is one block, as its payload.
inline absl::StatusOr<std::vector<std::byte>> EncodeOneBlock(const CodecChain& chain, const TensorDesc& tensor,
                                                             ByteSpan values, ErrorSums* sums) {
  const size_t count = values.size() / DTypeSize(tensor.dtype);
  KVC_ASSIGN_OR_RETURN(const ChainState state, chain.Analyze(tensor, MemorySource(values), 1 << 17));
  std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, count));
  KVC_ASSIGN_OR_RETURN(const size_t size, chain.EncodeBlock({tensor, 0, count, values}, state, payload, sums));
  payload.resize(size);
  return payload;
}

}  // namespace kvcompress::testing
