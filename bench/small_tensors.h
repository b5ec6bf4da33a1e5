#pragma once

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

#include "core/base/half.h"
#include "core/simd/error_sums.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "tests/testing/values.h"

namespace kvcompress {

// Frames of small tensors, one after another, as the facade for tensors in memory makes them: the time has all that a
// call does, with the search for a step where the codec has one. Channels are as different as those of keys.
class SmallTensors {
 public:
  struct Shape {
    size_t heads, tokens, dim;
    constexpr size_t count() const { return heads * tokens * dim; }
  };
  // Pages of 2 and of 16 tokens, and tensors of a small model, on both sides of where the entropy coder fills vectors.
  static constexpr Shape kShapes[] = {{8, 2, 128}, {8, 16, 128}, {2, 256, 64}, {4, 240, 64}, {4, 256, 64}};

  SmallTensors(std::string_view codec, const Shape& shape)
      : compressor_(TensorCompressor::Create(
            testing::MakeTensor("layer_0_key", DType::kF16, {1, shape.heads, shape.tokens, shape.dim}), codec)),
        values_(kCount * shape.count() * sizeof(uint16_t)),
        decoded_(shape.count() * sizeof(uint16_t)),
        frames_(kCount, std::vector<std::byte>(compressor_.ok() ? compressor_->max_frame_bytes() : 0)),
        sizes_(kCount) {
    std::mt19937 random(1);
    std::vector<float> means(shape.heads * shape.dim), deviations(means.size());
    for (float& mean : means) mean = testing::Bell(random);
    for (float& deviation : deviations) deviation = std::exp2(0.5f * testing::Bell(random));
    for (size_t i = 0; i < kCount * shape.count(); ++i) {
      const size_t channel = i / (shape.tokens * shape.dim) % shape.heads * shape.dim + i % shape.dim;
      const float value = means[channel] + deviations[channel] * testing::Bell(random);
      StoreFromF32(DType::kF16, value, values_.data(), i);
    }
  }

  void Encode(benchmark::State& state) {
    for (auto _ : state) Compress(state);
    Count(state);
  }

  void Decode(benchmark::State& state) {
    Compress(state);
    TensorDecompressor decompressor;
    for (auto _ : state) {
      for (size_t i = 0; i < kCount; ++i) {
        const auto bytes = decompressor.Decompress(ByteSpan(frames_[i]).first(sizes_[i]), decoded_);
        if (!bytes.ok()) state.SkipWithError("a frame cannot be decompressed");
      }
    }
    Count(state);
  }

 private:
  static constexpr size_t kCount = 64;

  void Compress(benchmark::State& state) {
    if (!compressor_.ok()) return state.SkipWithError("the codec does not take the tensor");
    for (size_t i = 0; i < kCount; ++i) {
      ErrorSums sums;
      const auto values = ByteSpan(values_).subspan(i * decoded_.size(), decoded_.size());
      const auto size = compressor_->Compress(values, frames_[i], &sums);
      if (!size.ok()) return state.SkipWithError("a tensor cannot be compressed");
      sizes_[i] = *size;
    }
  }

  void Count(benchmark::State& state) const {
    state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(values_.size()));
  }

  const absl::StatusOr<TensorCompressor> compressor_;
  std::vector<std::byte> values_, decoded_;
  std::vector<std::vector<std::byte>> frames_;
  std::vector<size_t> sizes_;
};

}  // namespace kvcompress
