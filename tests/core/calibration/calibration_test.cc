#include "core/calibration/calibration.h"

#include <gmock/gmock.h>

#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/artifact/artifact_file.h"
#include "core/base/half.h"
#include "core/simd/rotary.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Tensors with the memory that they are in.
class Caches {
 public:
  // Values [sequences, heads, tokens, head_dim] as F32, stored along `axes` (the order of these four).
  void Add(const std::string& file, const std::string& name, const std::vector<uint64_t>& shape,
           const std::vector<float>& values, uint64_t start = 0, bool heads_last = false) {
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    TensorDesc tensor{name, DType::kF32, shape, DefaultAxes(name, shape.size())};
    const auto [batch, heads, tokens, dim] = std::tuple(shape[0], shape[1], shape[2], shape[3]);
    if (heads_last) {
      tensor.shape = {batch, tokens, heads, dim};
      std::swap(tensor.axes[1], tensor.axes[2]);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t token = i / dim % tokens, head = i / dim / tokens % heads, sequence = i / dim / tokens / heads;
      const size_t to = heads_last ? ((sequence * tokens + token) * heads + head) * dim + i % dim : i;
      StoreFromF32(DType::kF32, values[i], bytes.data(), to);
    }
    tensors_.push_back({file, tensor, &sources_.emplace_back(std::move(bytes)), start});
  }
  CacheTensor& last() { return tensors_.back(); }

  absl::StatusOr<Calibration> Calibrate(CalibrationOptions options = {}, size_t threads = 2) const {
    ThreadPool pool(threads);
    return kvcompress::Calibrate(tensors_, weights_, options, pool);
  }

  void AddWeight(const std::string& name, const std::vector<uint64_t>& shape, const std::vector<float>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    for (size_t i = 0; i < values.size(); ++i) StoreFromF32(DType::kF32, values[i], bytes.data(), i);
    weights_.push_back(
        {{name, DType::kF32, shape, std::vector<AxisRole>(shape.size())}, &sources_.emplace_back(std::move(bytes))});
  }

 private:
  std::deque<MemorySource> sources_;
  std::vector<CacheTensor> tensors_;
  std::vector<WeightTensor> weights_;
};

// Values with a mean for each channel, deviations that fall, and channels that go together.
std::vector<float> MakeValues(uint64_t heads, uint64_t tokens, uint64_t dim, uint32_t seed, uint64_t sequences = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values;
  for (uint64_t row = 0; row < sequences * heads * tokens; ++row) {
    const float common = normal(random);
    for (uint64_t i = 0; i < dim; ++i) {
      values.push_back(static_cast<float>(i % 5) - 1.5f + common + normal(random) / static_cast<float>(1 + i));
    }
  }
  return values;
}

std::vector<float> Turned(std::vector<float> values, const simd::RotaryEmbedding& rotary, uint64_t tokens, uint64_t dim,
                          uint64_t start) {
  simd::RotaryTable table;
  table.Make(rotary, rotary.dims, start, tokens);
  for (size_t at = 0; at < values.size(); at += tokens * dim) {
    simd::TurnRows(table, 0, rotary.pairs, simd::RotaryTurn::kForward, &values[at + rotary.offset], tokens, dim);
  }
  return values;
}

// The relative difference of two artifacts' largest sigmas and of their means.
void ExpectAlike(const ArtifactTensor& a, const ArtifactTensor& b) {
  ASSERT_EQ(a.sigma.size(), b.sigma.size());
  for (size_t i = 0; i < a.sigma.size(); ++i) {
    EXPECT_NEAR(a.sigma[i], b.sigma[i], 1e-3 * a.sigma[0]) << i;
    EXPECT_NEAR(a.mean[i], b.mean[i], 1e-4) << i;
  }
}

TEST(CalibrationTest, AGroupHasAsManyHeadsAsFitAndDivideThem) {
  const struct {
    uint64_t heads, head_dim, group_dim, group_heads;
  } kCases[] = {{3, 64, 128, 1}, {3, 64, 256, 3}, {2, 64, 128, 2}, {2, 64, 64, 1},
                {6, 16, 64, 3},  {1, 96, 64, 1},  {4, 40, 128, 2}};
  for (const auto& test : kCases) {
    Caches caches;
    caches.Add("a", "layer_0_key", {1, test.heads, 300, test.head_dim}, MakeValues(test.heads, 300, test.head_dim, 1));
    const auto calibration = caches.Calibrate({.group_dim = test.group_dim});
    ASSERT_THAT(calibration, IsOk());
    const Artifact& artifact = calibration->artifact;
    EXPECT_EQ(artifact.group_heads, test.group_heads) << test.heads << " " << test.head_dim << " " << test.group_dim;
    EXPECT_EQ(artifact.tokens, 296);
    EXPECT_THAT(SerializeArtifact(artifact, ""), IsOk());
  }
}

TEST(CalibrationTest, KeysAreTurnedBackAndValuesAreNot) {
  constexpr uint64_t kDim = 16, kTokens = 1500, kStart = 70;
  const simd::RotaryEmbedding rotary = {
      .theta = 10000, .pairs = simd::RotaryPairs::kInterleaved, .dims = 8, .offset = 4};
  const std::vector<float> values = MakeValues(2, kTokens, kDim, 7);
  Caches plain;
  Caches turned;
  for (const char* const name : {"layer_0_key", "layer_0_value"}) {
    plain.Add("a", name, {1, 2, kTokens, kDim}, values, kStart);
    turned.Add("b", name, {1, 2, kTokens, kDim}, Turned(values, rotary, kTokens, kDim, kStart), kStart);
  }
  const auto expected = plain.Calibrate();
  const auto back = turned.Calibrate({.rotary = rotary});
  const auto as_it_is = turned.Calibrate();
  ASSERT_THAT(expected, IsOk());
  ASSERT_THAT(back, IsOk());
  ASSERT_THAT(as_it_is, IsOk());
  EXPECT_EQ(back->artifact.rotary, rotary);
  ExpectAlike(back->artifact.tensors.at({0, false}), expected->artifact.tensors.at({0, false}));
  EXPECT_EQ(back->artifact.tensors.at({0, true}), as_it_is->artifact.tensors.at({0, true}));
  // Of what turns, the mean is lost.
  const auto lost = as_it_is->artifact.tensors.at({0, false}).mean[5];
  EXPECT_GT(std::abs(lost - expected->artifact.tensors.at({0, false}).mean[5]), 0.5);
  EXPECT_LT(*back->tensors[0].channel_bits + 0.2, *as_it_is->tensors[0].channel_bits);
}

TEST(CalibrationTest, WithoutDimsAllChannelsTurn) {
  Caches caches;
  caches.Add("a", "layer_0_key", {1, 1, 200, 16}, MakeValues(1, 200, 16, 7));
  const auto calibration = caches.Calibrate({.rotary = simd::RotaryEmbedding{.theta = 100, .offset = 4}});
  ASSERT_THAT(calibration, IsOk());
  EXPECT_EQ(calibration->artifact.rotary->dims, 12);
  EXPECT_THAT(caches.Calibrate({.rotary = simd::RotaryEmbedding{.theta = 100, .offset = 16}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rotary channels")));
}

TEST(CalibrationTest, SinksOfSequencesThatBeginAtZeroAreLeftOut) {
  std::vector<float> values = MakeValues(1, 600, 8, 3, 2);
  const auto artifact_of = [&](uint64_t start) {
    Caches caches;
    caches.Add("a", "layer_0_value", {2, 1, 600, 8}, values, start);
    const auto calibration = caches.Calibrate();
    EXPECT_THAT(calibration, IsOk());
    return calibration->artifact;
  };
  const Artifact before = artifact_of(0);
  EXPECT_EQ(before.tokens, 2 * 596);
  for (const size_t sequence : {0, 1}) {
    for (size_t i = 0; i < 4 * 8; ++i) values[sequence * 600 * 8 + i] = 1e6f;
  }
  EXPECT_EQ(artifact_of(0), before);
  EXPECT_EQ(artifact_of(1).tokens, 1200);
  EXPECT_GT(artifact_of(1).tensors.begin()->second.mean[0], 1000);
}

TEST(CalibrationTest, FilesAndBatchesAndLayoutsAddUp) {
  const std::vector<float> first = MakeValues(3, 700, 16, 1);
  const std::vector<float> second = MakeValues(3, 700, 16, 2);
  std::vector<float> both = first;
  both.insert(both.end(), second.begin(), second.end());
  const CalibrationOptions options = {.group_dim = 64, .rotary = simd::RotaryEmbedding{.theta = 10000}};
  std::vector<Calibration> results;
  for (const int way : {0, 1, 2}) {
    Caches caches;
    if (way == 0) {
      caches.Add("a", "layer_5_key", {1, 3, 700, 16}, first);
      caches.Add("b", "layer_5_key", {1, 3, 700, 16}, second);
    } else {
      caches.Add("a", "layer_5_key", {2, 3, 700, 16}, both, 0, way == 2);
    }
    auto calibration = caches.Calibrate(options);
    ASSERT_THAT(calibration, IsOk());
    results.push_back(*std::move(calibration));
  }
  EXPECT_EQ(results[0].artifact.tokens, 1392);
  EXPECT_EQ(results[0].artifact, results[1].artifact);
  EXPECT_EQ(results[0].artifact, results[2].artifact);
}

TEST(CalibrationTest, TheNumberOfThreadsChangesNoBit) {
  Caches caches;
  for (const char* const file : {"a", "b"}) {
    for (int layer = 0; layer < 5; ++layer) {
      for (const char* const kind : {"key", "value"}) {
        caches.Add(file, absl::StrFormat("layer_%d_%s", layer, kind), {1, 2, 600, 32},
                   MakeValues(2, 600, 32, static_cast<uint32_t>(layer)));
      }
    }
  }
  const CalibrationOptions options = {.group_dim = 64, .rotary = simd::RotaryEmbedding{.theta = 10000}};
  const auto one = caches.Calibrate(options, 1);
  ASSERT_THAT(one, IsOk());
  const auto expected = SerializeArtifact(one->artifact, "");
  ASSERT_THAT(expected, IsOk());
  for (const size_t threads : {2, 7}) {
    const auto many = caches.Calibrate(options, threads);
    ASSERT_THAT(many, IsOk());
    EXPECT_EQ(SerializeArtifact(many->artifact, "")->id, expected->id);
  }
}

TEST(CalibrationTest, TheBitsThatItPromisesAreThoseOfTheSigmas) {
  Caches caches;
  caches.Add("a", "layer_0_value", {1, 1, 4000, 16}, MakeValues(1, 4000, 16, 9));
  const auto calibration = caches.Calibrate();
  ASSERT_THAT(calibration, IsOk());
  const TensorCalibration& figures = calibration->tensors.at(0);
  EXPECT_EQ(figures.tokens, 3996);
  EXPECT_GT(figures.int4_squared_error, 0);
  // One direction holds what the channels have in common.
  EXPECT_GT(*figures.channel_bits, *figures.coefficient_bits + 1);
}

TEST(CalibrationTest, WeightsSetBasisAndStep) {
  const std::vector<uint64_t> shape = {1, 1, 500, 4};
  Caches caches;
  for (const char* const name : {"layer_0_key", "layer_0_value"})
    caches.Add("a", name, shape, MakeValues(1, 500, 4, 9));
  const auto plain = caches.Calibrate();
  ASSERT_THAT(plain, IsOk());
  EXPECT_FALSE(plain->artifact.weighted);
  std::vector<float> weight(16);
  for (size_t i = 0; i < 4; ++i) weight[5 * i] = i == 0 ? 13.0f : 1.0f;
  caches.AddWeight("layer_0_key", {1, 4, 4}, weight);
  EXPECT_THAT(caches.Calibrate(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("none for layer_0_value")));
  for (float& entry : weight) entry *= 16;
  caches.AddWeight("layer_0_value", {1, 4, 4}, weight);
  const auto weighted = caches.Calibrate();
  ASSERT_THAT(weighted, IsOk());
  EXPECT_TRUE(weighted->artifact.weighted);
  const ArtifactTensor& keys = weighted->artifact.tensors.at({0, false});
  const ArtifactTensor& values = weighted->artifact.tensors.at({0, true});
  // The same weight but for its size.
  EXPECT_EQ(keys.forward, values.forward);
  EXPECT_FLOAT_EQ(keys.step, 2);
  EXPECT_FLOAT_EQ(values.step, 0.5f);
  EXPECT_NE(keys.forward, plain->artifact.tensors.at({0, false}).forward);
  EXPECT_EQ(plain->artifact.tensors.at({0, false}).step, 1);
  EXPECT_THAT(SerializeArtifact(weighted->artifact, ""), IsOk());
}

TEST(CalibrationTest, WeightsThatDoNotFitAreRefused) {
  const auto refused = [](const std::string& name, const std::vector<uint64_t>& shape, const std::vector<float>& values,
                          const std::string& why) {
    Caches caches;
    caches.Add("a", "layer_0_key", {1, 1, 100, 2}, MakeValues(1, 100, 2, 9));
    caches.AddWeight(name, shape, values);
    EXPECT_THAT(caches.Calibrate(),
                StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr(name), HasSubstr(why))));
  };
  refused("layer_1_key", {1, 2, 2}, {1, 0, 0, 1}, "no cache has such a tensor");
  refused("layer_0_key", {2, 2}, {1, 0, 0, 1}, "F32 [2, 2] in place of F32 [1, 2, 2]");
  refused("layer_0_key", {1, 2, 2}, {1, 3, 3, 1}, "group 0: the weight is not positive semi-definite");
}

TEST(CalibrationTest, CachesThatDoNotFitAreRefused) {
  const std::vector<float> good = MakeValues(2, 100, 8, 9);
  const auto refused = [&](const std::string& why, auto change) {
    Caches caches;
    caches.Add("one", "layer_0_key", {1, 2, 100, 8}, good);
    caches.Add("two", "layer_0_value", {1, 2, 100, 8}, good);
    change(caches);
    EXPECT_THAT(caches.Calibrate({.group_dim = 64}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused("three: tensor \"layer_1_key\": it has 1 heads of 16 channels, and layer_0_key of one has 2 of 8",
          [&](Caches& c) {
            c.Add("three", "layer_1_key", {1, 1, 100, 16}, good);
          });
  refused("two: tensor \"ssm\": its name", [](Caches& c) { c.last().tensor.name = "ssm"; });
  refused("two: tensor \"layer_1024_key\": its name", [](Caches& c) { c.last().tensor.name = "layer_1024_key"; });
  refused("its last axis is not head_dim",
          [](Caches& c) { std::swap(c.last().tensor.axes[2], c.last().tensor.axes[3]); });
  refused("it has no seq axis", [](Caches& c) {
    c.last().tensor.shape = {2, 8};
    c.last().tensor.axes = {AxisRole::kHeads, AxisRole::kHeadDim};
  });
  refused("it has two heads axes", [](Caches& c) { c.last().tensor.axes[0] = AxisRole::kHeads; });
  refused("its axis 1 is none of batch, heads and seq", [](Caches& c) { c.last().tensor.axes[1] = AxisRole::kOther; });
  refused("its dtype is U32", [](Caches& c) { c.last().tensor.dtype = DType::kU32; });
  refused("two: tensor \"layer_0_value\": NaN or infinity in sequence 0, token 17, head 1", [&](Caches& c) {
    std::vector<float> bad = good;
    bad[(100 + 17) * 8 + 3] = std::numeric_limits<float>::quiet_NaN();
    c.last().tensor.name = "layer_1_value";
    c.Add("two", "layer_0_value", {1, 2, 100, 8}, bad);
  });
  refused("three: tensor \"layer_1_key\": 16 tokens are not enough for groups of 16 channels: 17 are the least",
          [&](Caches& c) {
            c.Add("three", "layer_1_key", {1, 2, 20, 8}, MakeValues(2, 20, 8, 1));
          });
  EXPECT_THAT(Caches().Calibrate(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no tensor")));
}

TEST(CalibrationTest, AHeadOfTooManyChannelsIsRefused) {
  Caches caches;
  caches.Add("a", "layer_0_key", {1, 1, 2000, 1025}, std::vector<float>(2000 * 1025));
  EXPECT_THAT(caches.Calibrate(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1025 channels")));
}

TEST(CalibrationTest, ProgressEndsWithAllBytes) {
  Caches caches;
  for (const char* const name : {"layer_0_key", "layer_0_value"}) {
    caches.Add("a", name, {1, 1, 2048, 8}, MakeValues(1, 2048, 8, 9));
  }
  std::vector<uint64_t> done;
  uint64_t all = 0;
  ASSERT_THAT(caches.Calibrate({.progress =
                                    [&](uint64_t bytes, uint64_t total) {
                                      done.push_back(bytes);
                                      all = total;
                                    }}),
              IsOk());
  EXPECT_EQ(all, 2 * 2048 * 8 * sizeof(float));
  EXPECT_EQ(done.back(), all);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
}

}  // namespace
}  // namespace kvcompress
