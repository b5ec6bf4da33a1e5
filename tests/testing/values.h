#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/half.h"
#include "core/base/tensor.h"

// Values for tests, equal on every machine for equal seeds.
namespace kvcompress::testing {

enum class Distribution { kZeros, kGaussian, kOutliers, kTiny, kHuge, kConstant };

inline constexpr Distribution kAllDistributions[] = {Distribution::kZeros,    Distribution::kGaussian,
                                                     Distribution::kOutliers, Distribution::kTiny,
                                                     Distribution::kHuge,     Distribution::kConstant};

// A value in about [-6, 6] with the bell shape of a sum of twelve uniform ones.
inline float Bell(std::mt19937& random) {
  float sum = -6;
  for (int i = 0; i < 12; ++i) sum += static_cast<float>(random() >> 8) * 0x1p-24f;
  return sum;
}

inline std::vector<std::byte> MakeValues(DType dtype, size_t count, Distribution distribution, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count * DTypeSize(dtype));
  for (size_t i = 0; i < count; ++i) {
    float value = 0;
    switch (distribution) {
      case Distribution::kZeros: value = random() % 2 == 0 ? 0.0f : -0.0f; break;
      case Distribution::kGaussian: value = Bell(random); break;
      case Distribution::kOutliers: value = Bell(random) * (random() % 100 == 0 ? 50.0f : 1.0f); break;
      case Distribution::kTiny: value = Bell(random) * 0x1p-22f; break;
      case Distribution::kHuge: value = random() % 7 == 0 ? 65504.0f : Bell(random) * 10000.0f; break;
      case Distribution::kConstant: value = 1.5f; break;
    }
    StoreFromF32(dtype, value, bytes.data(), i);
  }
  return bytes;
}

// Any bits at all: NaN payloads, infinities, subnormals.
inline std::vector<std::byte> MakeBits(size_t bytes, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::byte> result(bytes);
  for (std::byte& byte : result) byte = static_cast<std::byte>(random());
  return result;
}

// Values of every magnitude that binary32 has, subnormal ones beside others: runs of `run` at one magnitude each, in
// which one value in four has any other, smaller one, or is 0.
inline std::vector<std::byte> MakeMagnitudes(DType dtype, size_t count, size_t run, float largest, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count * DTypeSize(dtype));
  int exponent = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i % run == 0)
      exponent = random() % 2 == 0 ? -120 - static_cast<int>(random() % 30) : static_cast<int>(random() % 260) - 148;
    const int own = random() % 4 == 0 ? exponent - static_cast<int>(random() % 60) : exponent;
    const float value = std::ldexp(Bell(random), own);
    StoreFromF32(dtype, std::min(std::max(value, -largest), largest), bytes.data(), i);
  }
  return bytes;
}

inline TensorDesc MakeTensor(std::string name, DType dtype, std::vector<uint64_t> shape) {
  TensorDesc tensor{.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .axes = {}};
  tensor.axes = DefaultAxes(tensor.name, tensor.shape.size());
  return tensor;
}

}  // namespace kvcompress::testing
