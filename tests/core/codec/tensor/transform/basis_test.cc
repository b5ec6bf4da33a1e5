#include "core/codec/tensor/transform/basis.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/artifact/artifact_store.h"
#include "core/base/half.h"
#include "core/calibration/calibration.h"
#include "core/codec/chain.h"
#include "core/codec/tensor/transform/strip.h"
#include "core/decompress_stream.h"
#include "core/simd/rotary.h"
#include "core/tensor_compressor.h"
#include "tests/testing/folder_test.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

namespace fs = std::filesystem;
using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

constexpr uint64_t kHeads = 4, kDim = 32;
constexpr simd::RotaryEmbedding kRotary = {
    .theta = 10000, .pairs = simd::RotaryPairs::kHalf, .dims = kDim, .offset = 0};

// Keys [batch, heads, tokens, dim] of a model: eight directions that all heads share, channels with means, turned.
std::vector<float> ModelKeys(uint64_t batch, uint64_t tokens, uint32_t seed) {
  constexpr uint64_t kShared = 8;
  std::mt19937 model(1);
  std::normal_distribution<float> normal;
  std::vector<float> directions(kShared * kHeads * kDim), means(kHeads * kDim);
  for (float& value : directions) value = normal(model);
  for (float& value : means) value = 5 * normal(model);
  std::mt19937 random(seed);
  std::vector<float> values(batch * kHeads * tokens * kDim);
  for (uint64_t b = 0; b < batch; ++b) {
    for (uint64_t t = 0; t < tokens; ++t) {
      float common[kShared];
      for (float& value : common) value = normal(random);
      for (uint64_t c = 0; c < kHeads * kDim; ++c) {
        float value = means[c] + 0.05f * normal(random);
        for (uint64_t s = 0; s < kShared; ++s) value += common[s] * directions[s * kHeads * kDim + c];
        values[((b * kHeads + c / kDim) * tokens + t) * kDim + c % kDim] = value;
      }
    }
  }
  simd::RotaryTable table;
  table.Make(kRotary, kRotary.dims, 0, tokens);
  for (uint64_t at = 0; at < values.size(); at += tokens * kDim) {
    simd::TurnRows(table, 0, kRotary.pairs, simd::RotaryTurn::kForward, &values[at], tokens, kDim);
  }
  return values;
}

TensorDesc KeysOf(uint64_t batch, uint64_t tokens, std::string name = "layer_3_key") {
  const std::vector<uint64_t> shape = {batch, kHeads, tokens, kDim};
  return {.name = std::move(name), .dtype = DType::kF32, .shape = shape, .axes = DefaultAxes("layer_0_key", 4)};
}

// The same with the heads within tokens.
TensorDesc HeadsLast(TensorDesc tensor) {
  std::swap(tensor.shape[1], tensor.shape[2]);
  std::swap(tensor.axes[1], tensor.axes[2]);
  return tensor;
}

Bytes BytesOf(const std::vector<float>& values) {
  const auto* const bytes = reinterpret_cast<const std::byte*>(values.data());
  return {bytes, bytes + values.size() * sizeof(float)};
}

std::vector<float> HeadsLast(const std::vector<float>& values, uint64_t tokens) {
  std::vector<float> moved(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t c = i % kDim, t = i / kDim % tokens, h = i / kDim / tokens % kHeads, b = i / kDim / tokens / kHeads;
    moved[((b * tokens + t) * kHeads + h) * kDim + c] = values[i];
  }
  return moved;
}

struct Coded {
  double bits = 0;
  double snr = 0;
  Bytes decoded;
  std::vector<Bytes> payloads = {};
};

class TransformBasisTest : public testing::FolderTest {
 protected:
  TransformBasisTest() {
    store_ = std::make_unique<ArtifactStore>(
        ArtifactStore::Options{.directory = folder_.string(), .look_again = std::chrono::nanoseconds(0)});
  }

  // Puts an artifact of the model's layer 3 into the folder, for groups of so many channels, and changed.
  ArtifactId Calibrate(uint64_t group_dim, float step = 1, const std::function<void(Artifact&)>& change = {}) {
    const Bytes values = BytesOf(ModelKeys(1, 3000, 7));
    const MemorySource source{ByteSpan(values)};
    ThreadPool pool(1);
    const CacheTensor cache = {"cache", KeysOf(1, 3000), &source};
    auto calibration = kvcompress::Calibrate({&cache, 1}, {}, {.group_dim = group_dim, .rotary = kRotary}, pool);
    EXPECT_THAT(calibration, IsOk());
    calibration->artifact.tensors.begin()->second.step = step;
    if (change) change(calibration->artifact);
    const auto file = SerializeArtifact(calibration->artifact, "a test");
    EXPECT_THAT(file, IsOk());
    std::ofstream(folder_ / absl::StrFormat("%s.kvcal", file->id), std::ios::binary) << AsText(file->bytes);
    return file->id;
  }

  absl::StatusOr<CodecChain> Resolve(const std::string& spec, const TensorDesc& tensor) {
    const auto parsed = ChainSpec::Parse(spec);
    EXPECT_THAT(parsed, IsOk());
    return parsed->Resolve({.artifacts = store_.get()}, tensor);
  }

  Coded Code(const std::string& spec, const TensorDesc& tensor, const Bytes& values) {
    Coded coded{.decoded = Bytes(values.size())};
    const auto chain = Resolve(spec, tensor);
    // A frame does not have the tensor's name.
    TensorDesc nameless = tensor;
    nameless.name.clear();
    const auto decoder = Resolve(spec, nameless);
    EXPECT_THAT(chain, IsOk());
    EXPECT_THAT(decoder, IsOk());
    if (!chain.ok() || !decoder.ok()) return coded;
    const size_t block = chain->BlockElements(tensor) * sizeof(float);
    const auto state = chain->Analyze(tensor, MemorySource(ByteSpan(values)), block / sizeof(float));
    EXPECT_THAT(state, IsOk());
    double bytes = 0;
    for (size_t at = 0; at < values.size(); at += block) {
      const size_t size = std::min(block, values.size() - at);
      Bytes& payload = coded.payloads.emplace_back(chain->MaxPayloadBytes(tensor, size / sizeof(float)));
      const auto written =
          chain->EncodeBlock({tensor, at / sizeof(float), size / sizeof(float), ByteSpan(values).subspan(at, size)},
                             *state, payload, nullptr);
      EXPECT_THAT(written, IsOk());
      payload.resize(*written);
      bytes += static_cast<double>(*written);
      EXPECT_THAT(decoder->DecodeBlock(nameless, payload, MutableByteSpan(coded.decoded).subspan(at, size)), IsOk());
    }
    double squares = 0, errors = 0;
    for (size_t i = 0; i < values.size() / sizeof(float); ++i) {
      const double x = LoadAsF32(DType::kF32, values.data(), i);
      squares += x * x;
      errors += std::pow(x - static_cast<double>(LoadAsF32(DType::kF32, coded.decoded.data(), i)), 2);
    }
    coded.snr = 10 * std::log10(squares / errors);
    coded.bits = 8 * bytes / static_cast<double>(values.size() / sizeof(float));
    return coded;
  }

  Bytes FrameOf(const std::string& spec, const TensorDesc& tensor, const Bytes& values) {
    const auto compressor = TensorCompressor::Create(tensor, spec, {.environment = {.artifacts = store_.get()}});
    EXPECT_THAT(compressor, IsOk());
    Bytes frame(compressor->max_frame_bytes());
    const auto size = compressor->Compress(values, frame);
    EXPECT_THAT(size, IsOk());
    frame.resize(size.value_or(0));
    return frame;
  }

  std::unique_ptr<ArtifactStore> store_;
};

// Takes the values as they come; an error is a failure.
struct Values final : DecompressOutput {
  void OnHeader(const TensorDesc&, uint64_t) override {}
  void OnData(Slice part) override { bytes.insert(bytes.end(), part.bytes.begin(), part.bytes.end()); }
  void OnTensor(const TensorReport&) override {}
  void OnError(const absl::Status& status) override { ADD_FAILURE() << status; }

  Bytes bytes;
};

// Of each coefficient of a head, with the mean of squares over tokens of all batches.
std::vector<double> CoefficientPowers(const ArtifactTensor& tensor, const Bytes& decoded, uint64_t tokens,
                                      size_t head) {
  std::vector<float> values(decoded.size() / sizeof(float));
  std::memcpy(values.data(), decoded.data(), decoded.size());
  simd::RotaryTable table;
  table.Make(kRotary, kRotary.dims, 0, tokens);
  float* const own = &values[head * tokens * kDim];
  simd::TurnRows(table, 0, kRotary.pairs, simd::RotaryTurn::kBack, own, tokens, kDim);
  std::vector<double> powers(kDim);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < kDim; ++i) {
      double y = 0;
      for (size_t c = 0; c < kDim; ++c) {
        const size_t row = head * kDim + i;
        y += static_cast<double>(tensor.forward[row * kDim + c]) *
             static_cast<double>(own[t * kDim + c] - tensor.mean[head * kDim + c]);
      }
      powers[i] += y * y / static_cast<double>(tokens);
    }
  }
  return powers;
}

TEST_F(TransformBasisTest, RanksKeepTheFirstCoefficientsOfEachHead) {
  constexpr uint64_t kTokens = 256;
  constexpr size_t kRanks[kHeads] = {1, 4, 7, kDim};
  std::optional<Artifact> artifact;
  const ArtifactId id = Calibrate(kDim, 1, [&](const Artifact& made) { artifact = made; });
  const ArtifactTensor& learned = artifact->tensors.begin()->second;
  const std::vector<float> keys = ModelKeys(1, kTokens, 8);
  const std::string spec = absl::StrFormat("transform(step=0.002,sinks=false,artifact=%s", id);
  const TensorDesc tensor = KeysOf(1, kTokens);
  const Coded whole = Code(spec + ")", tensor, BytesOf(keys));
  const Coded coded = Code(spec + ",ranks=1/4/7/32)", tensor, BytesOf(keys));
  for (size_t head = 0; head < kHeads; ++head) {
    const std::vector<double> kept = CoefficientPowers(learned, coded.decoded, kTokens, head);
    const std::vector<double> all = CoefficientPowers(learned, BytesOf(keys), kTokens, head);
    for (size_t i = 0; i < kDim; ++i) {
      if (i < kRanks[head]) {
        EXPECT_NEAR(kept[i] / all[i], 1, 0.01) << head << ", " << i;
      } else {
        EXPECT_LT(kept[i], 1e-4 * all[0]) << head << ", " << i;
      }
    }
  }
  EXPECT_LT(coded.snr, whole.snr - 20);
  EXPECT_EQ(Code(spec + ",ranks=32)", tensor, BytesOf(keys)).payloads, whole.payloads);
  EXPECT_EQ(Code(spec + ",ranks=5)", tensor, BytesOf(keys)).payloads,
            Code(spec + ",ranks=5/5/5/5)", tensor, BytesOf(keys)).payloads);
  // Decoders need no ranks.
  EXPECT_EQ(Resolve(spec + ")", tensor)->spec().find("ranks"), std::string::npos);
  const auto decoder = Resolve(spec + ")", tensor);
  Bytes decoded(coded.decoded.size());
  ASSERT_THAT(decoder->DecodeBlock(tensor, coded.payloads[0], MutableByteSpan(decoded)), IsOk());
  EXPECT_EQ(decoded, coded.decoded);

  const Coded within = Code(spec + ",ranks=1/4/7/32)", HeadsLast(tensor), BytesOf(HeadsLast(keys, kTokens)));
  EXPECT_NEAR(within.snr, coded.snr, 0.05);
}

// The first tokens of a sequence, which attention looks at most, are of no use where they are cut as the others are.
TEST_F(TransformBasisTest, RanksLeaveTheFirstTokensOfASequenceWhole) {
  constexpr uint64_t kTokens = 256, kBatch = 2, kSinks = 4;
  const ArtifactId id = Calibrate(kDim);
  const TensorDesc tensor = KeysOf(kBatch, kTokens);
  const std::vector<float> keys = ModelKeys(kBatch, kTokens, 8);
  const auto code = [&](const char* more) {
    return Code(absl::StrFormat("transform(step=0.05,artifact=%s%s)", id, more), tensor, BytesOf(keys));
  };
  const auto error_of = [&](const Coded& coded, uint64_t token) {
    double squares = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (i / kDim % kTokens != token) continue;
      const float off = LoadAsF32(DType::kF32, coded.decoded.data(), i) - keys[i];
      squares += static_cast<double>(off) * static_cast<double>(off);
    }
    return std::sqrt(squares / (kBatch * kHeads * kDim));
  };
  const Coded coded = code(",ranks=1");
  for (uint64_t token = 0; token < 2 * kSinks; ++token) {
    if (token < kSinks) {
      EXPECT_LT(error_of(coded, token), 0.05) << token;
    } else {
      EXPECT_GT(error_of(coded, token), 0.5) << token;
    }
  }
  const Coded cut = code(",ranks=1,sinks=false");
  EXPECT_GT(error_of(cut, 0), 0.5);
  EXPECT_GT(error_of(code(",ranks=1,start=1000"), 0), 0.5);
  // Steps that are finer by 7/4 bits on average, and tables that are not of these tokens.
  const double of_value = code("").bits + 7.0 / 4 + 5;
  EXPECT_LT(coded.bits - cut.bits, of_value * kSinks / kTokens);
}

TEST_F(TransformBasisTest, WhatRanksDropCostsNextToNothing) {
  constexpr double kStep = 0.05;
  std::optional<Artifact> artifact;
  const ArtifactId id = Calibrate(kDim, 1, [&](const Artifact& made) { artifact = made; });
  const std::vector<float>& sigma = artifact->tensors.begin()->second.sigma;
  for (const size_t rank : {1, 4}) {
    double entropy = 0;  // of all kept coefficients of a token, as points two steps apart have it
    for (size_t at = 0; at < sigma.size(); ++at) {
      if (at % kDim < rank) entropy += std::log2(static_cast<double>(sigma[at]) / (2 * kStep)) + 2.05;
    }
    for (const auto& [tokens, around] : {std::pair(16, 0.15), std::pair(256, 0.032)}) {
      const Bytes values = BytesOf(ModelKeys(1, static_cast<uint64_t>(tokens), 8));
      const std::string spec = absl::StrFormat("transform(step=%g,sinks=false,artifact=%s,ranks=%d)", kStep, id, rank);
      const double bits = Code(spec, KeysOf(1, static_cast<uint64_t>(tokens)), values).bits;
      const size_t count = values.size() / sizeof(float);
      const double of_lanes = 8.0 * 3 * static_cast<double>(LanesFor(count)) / static_cast<double>(count);
      EXPECT_LT(bits, entropy / static_cast<double>(sigma.size()) + of_lanes + around)
          << rank << " of " << tokens << " tokens";
    }
  }
}

TEST_F(TransformBasisTest, RanksOfOtherHeadsAreRefused) {
  const TensorDesc tensor = KeysOf(1, 256);
  const auto refused = [&](const std::string& id, const std::string& ranks, const std::string& why) {
    EXPECT_THAT(Resolve(absl::StrFormat("transform(bits=3,artifact=%s,ranks=%s)", id, ranks), tensor),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  const ArtifactId id = Calibrate(kDim);
  refused(id, "8/16", "ranks of 2 heads, and the artifact is for 4");
  refused(id, "33", "head 0: rank 33 is above its 32 channels");
  refused(id, "8/8/8/64", "head 3: rank 64 is above its 32 channels");
  refused(Calibrate(64), "8", "ranks are of single heads, and the artifact takes 2 together: make one with -calibrate");
  const auto fault = [](const std::string& text) { return std::string(ChainSpec::Parse(text).status().message()); };
  EXPECT_THAT(fault("transform(bits=3,ranks=8)"), HasSubstr("give its id, artifact=ID"));
  for (const char* ranks : {"0", "8/0", "1025", "8/", "/8", "8//8", "-1", "8.5", "a"}) {
    EXPECT_THAT(fault(absl::StrFormat("transform(bits=3,artifact=%s,ranks=%s)", id, ranks)),
                HasSubstr("is not integers from 1 to 1024 with / between"))
        << ranks;
  }
  // A tensor without a name may be decoded.
  TensorDesc nameless = tensor;
  nameless.name.clear();
  const auto chain = Resolve(absl::StrFormat("transform(step=1,artifact=%s,ranks=8)", id), nameless);
  ASSERT_THAT(chain, IsOk());
  const Bytes values = BytesOf(ModelKeys(1, 256, 8));
  Bytes payload(chain->MaxPayloadBytes(nameless, kHeads * 256 * kDim));
  EXPECT_THAT(chain->EncodeBlock({nameless, 0, kHeads * 256 * kDim, values}, {}, payload, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ranks need to know which heads these are")));
}

TEST_F(TransformBasisTest, WhatHeadsHaveInCommonCostsNoBits) {
  const Bytes values = BytesOf(ModelKeys(2, 256, 8));
  const TensorDesc tensor = KeysOf(2, 256);
  const double alone = Code("transform(snr=25,theta=10000)", tensor, values).bits;
  const double per_head = Code(absl::StrFormat("transform(snr=25,artifact=%s)", Calibrate(64)), tensor, values).bits;
  const double all_heads = Code(absl::StrFormat("transform(snr=25,artifact=%s)", Calibrate(128)), tensor, values).bits;
  EXPECT_LT(per_head, 0.7 * alone);
  EXPECT_LT(all_heads, 0.7 * per_head);
}

TEST_F(TransformBasisTest, HeadsMayLieEitherWay) {
  const std::vector<float> values = ModelKeys(2, 200, 8);
  for (const uint64_t group_dim : {64, 128}) {
    const std::string spec = absl::StrFormat("transform(step=0.02,artifact=%s)", Calibrate(group_dim));
    const Coded heads_first = Code(spec, KeysOf(2, 200), BytesOf(values));
    const Coded heads_last = Code(spec, HeadsLast(KeysOf(2, 200)), BytesOf(HeadsLast(values, 200)));
    EXPECT_GT(heads_first.snr, 30);
    EXPECT_NEAR(heads_first.snr, heads_last.snr, 0.3);
    EXPECT_NEAR(heads_first.bits, heads_last.bits, 0.1);
  }
}

TEST_F(TransformBasisTest, PagesTakeClassesAndMeansFromTheArtifact) {
  const Bytes values = BytesOf(ModelKeys(1, 16, 8));
  const std::string spec = absl::StrFormat("transform(snr=25,artifact=%s)", Calibrate(128));
  EXPECT_LT(Code(spec, KeysOf(1, 16), values).bits,
            0.5 * Code("transform(snr=25,theta=10000)", KeysOf(1, 16), values).bits);
}

TEST_F(TransformBasisTest, AStepIsScaledByThatOfTheTensor) {
  const Bytes values = BytesOf(ModelKeys(1, 256, 8));
  const TensorDesc tensor = KeysOf(1, 256);
  const Coded fine = Code(absl::StrFormat("transform(step=0.01,artifact=%s)", Calibrate(64, 0.25f)), tensor, values);
  const Coded coarse = Code(absl::StrFormat("transform(step=0.01,artifact=%s)", Calibrate(64, 4)), tensor, values);
  EXPECT_NEAR(fine.snr - coarse.snr, 20 * std::log10(16), 3);
}

TEST(ShareOfBitsTest, TensorsWhoseErrorsCostMoreGetMore) {
  const auto tensor = [](const std::string& name) { return KeysOf(1, 16, name); };
  Artifact artifact;
  const auto add = [&](ArtifactKey key, std::vector<float> sigma, float step) {
    artifact.tensors[key].sigma = std::move(sigma);
    artifact.tensors[key].step = step;
  };
  add({0, false}, {8, 8, 4, 4}, 1);
  add({0, true}, {8, 8, 4, 4}, 0.25f);
  add({1, false}, {8, 8, 4, 0x1p-60f}, 1);
  const std::vector<std::string> names = {"layer_0_key", "layer_0_value", "layer_1_key"};
  for (const double bits : {0.2, 2.0, 3.0, 12.0}) {
    double sum = 0;
    for (const std::string& name : names) sum += ShareOfBits(artifact, tensor(name), bits);
    EXPECT_NEAR(sum / 3, bits, bits < 1 ? 0.05 : 1e-6);
  }
  const double keys = ShareOfBits(artifact, tensor("layer_0_key"), 5);
  EXPECT_NEAR(ShareOfBits(artifact, tensor("layer_0_value"), 5), keys + 2, 1e-6) << "a quarter of the step";
  EXPECT_LT(ShareOfBits(artifact, tensor("layer_1_key"), 5), keys - 1) << "a coefficient that is nothing";
  EXPECT_GT(ShareOfBits(artifact, tensor("layer_1_key"), 0.01), 0);
  EXPECT_EQ(ShareOfBits(artifact, tensor("layer_7_key"), 5), 5);
  EXPECT_EQ(ShareOfBits(artifact, tensor("tensor"), 5), 5);

  artifact.tensors.at({0, true}).step = 1;
  for (const std::string& name : names) EXPECT_EQ(ShareOfBits(artifact, tensor(name), 3), 3);
}

TEST_F(TransformBasisTest, ABudgetIsSharedWhereItIsKnownWhatErrorsCost) {
  const Bytes values = BytesOf(ModelKeys(1, 512, 8));
  std::vector<double> bits;
  for (const float step : {1.0f, 0.25f}) {
    const ArtifactId id = Calibrate(64, 1, [&](Artifact& artifact) {
      artifact.tensors[{4, false}] = artifact.tensors.begin()->second;
      artifact.tensors[{4, false}].step = step;
    });
    bits.push_back(Code(absl::StrFormat("transform(bits=4,artifact=%s)", id), KeysOf(1, 512), values).bits);
  }
  EXPECT_NEAR(bits[0], 4, 0.1);
  EXPECT_NEAR(bits[1], 3, 0.15) << "the other tensor has two more";
}

TEST_F(TransformBasisTest, ATensorOfAnotherModelIsRefused) {
  const std::string spec = absl::StrFormat("transform(bits=3,artifact=%s)", Calibrate(128));
  const auto refused = [&](TensorDesc tensor, const std::string& why) {
    EXPECT_THAT(Resolve(spec, tensor), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  TensorDesc tensor = KeysOf(1, 256);
  tensor.shape[1] = 8;
  refused(tensor, "the artifact is for 4 heads of 32 channels, and this tensor has 8 of 32");
  tensor = KeysOf(1, 256);
  tensor.shape[3] = 64;
  refused(tensor, "this tensor has 4 of 64");
  refused(KeysOf(1, 256, "layer_4_key"), "the artifact has no layer_4_key");
  refused(KeysOf(1, 256, "layer_3_value"), "the artifact has no layer_3_value");
  refused(KeysOf(1, 256, "states"), "layer_{i}_key");
  tensor = KeysOf(1, 256);
  tensor.axes[3] = AxisRole::kOther;
  refused(tensor, "[..., heads, seq, head_dim]");
  refused(KeysOf(1, 40'000), "40000 tokens of 4 heads");
  EXPECT_THAT(Resolve(absl::StrFormat("transform(bits=3,artifact=%s)", Calibrate(64)), KeysOf(1, 40'000)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("40000 tokens of 2 heads")));
  EXPECT_THAT(Resolve(spec, HeadsLast(KeysOf(1, 40'000))), IsOk());
}

TEST_F(TransformBasisTest, WhoDecodesMayCallTheTensorAnything) {
  const std::string spec = absl::StrFormat("transform(bits=3,artifact=%s)", Calibrate(128));
  const Bytes values = BytesOf(ModelKeys(1, 64, 8));
  const Bytes frame = FrameOf(spec, KeysOf(1, 64), values);
  for (const char* const name : {"layer_3_key", "layer_4_value", "a page"}) {
    ThreadPool pool(1);
    Values decoded;
    DecompressStream stream(pool, {.environment = {.artifacts = store_.get()}}, decoded);
    EXPECT_THAT(stream.Begin(name), IsOk());
    EXPECT_THAT(stream.Append(frame), IsOk()) << name;
    EXPECT_THAT(stream.Finish(), IsOk()) << name;
    stream.WaitBelow(1);
    EXPECT_EQ(decoded.bytes.size(), values.size());
  }
}

TEST_F(TransformBasisTest, TheIdInASmallFrameCountsForItsBudget) {
  const ArtifactId id = Calibrate(128);
  for (const uint64_t tokens : {16, 64, 128, 500}) {
    const Bytes values = BytesOf(ModelKeys(1, tokens, 8));
    const auto count = static_cast<double>(tokens * kHeads * kDim);
    for (const double bits : {2.0, 3.0, 6.0}) {
      const Bytes frame =
          FrameOf(absl::StrFormat("transform(bits=%g,artifact=%s)", bits, id), KeysOf(1, tokens), values);
      EXPECT_LE(8 * static_cast<double>(frame.size()) / count, bits) << tokens;
    }
  }
}

TEST_F(TransformBasisTest, AnArtifactThatIsNotThereIsNamed) {
  const std::string id(32, 'b');
  const std::string spec = absl::StrFormat("transform(bits=3,artifact=%s)", id);
  EXPECT_THAT(Resolve(spec, KeysOf(1, 256)),
              StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr(id), HasSubstr(folder_.string()))));
  // Without a store sizes are known, and nothing else.
  const TensorDesc tensor = KeysOf(1, 256);
  const auto chain = ChainSpec::Parse(spec)->Resolve({}, tensor);
  ASSERT_THAT(chain, IsOk());
  EXPECT_EQ(chain->BlockElements(tensor), 1u << 17);
  Bytes values(4 * 4 * 256 * 32);
  EXPECT_THAT(chain->DecodeBlock(tensor, Bytes(8), values).code(), ::testing::Ne(absl::StatusCode::kOk));
  EXPECT_THAT(chain->Analyze(tensor, MemorySource(ByteSpan(values)), 1 << 17),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(id)));
}

TEST_F(TransformBasisTest, SpecsThatSayTwiceHowKeysTurnAreRefused) {
  const std::string id(32, 'b');
  for (const char* const twice :
       {"theta=10000", "rotary=interleaved", "rotary_dims=4", "rotary_offset=4", "scaling=linear,factor=2"}) {
    EXPECT_THAT(ChainSpec::Parse(absl::StrFormat("transform(bits=3,artifact=%s,%s)", id, twice)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(": leave it out")))
        << twice;
  }
  EXPECT_THAT(ChainSpec::Parse("transform(bits=3,artifact=123)"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("artifact=123 is not 32 hex digits")));
  EXPECT_EQ(ChainSpec::Parse(absl::StrFormat("transform( artifact=%s , bits=3 )", id))->text(),
            absl::StrFormat("transform(bits=3,artifact=%s)", id));
}

TEST_F(TransformBasisTest, DamageIsNoCrash) {
  const Bytes values = BytesOf(ModelKeys(1, 64, 8));
  TensorDesc tensor = KeysOf(1, 64);
  for (const uint64_t group_dim : {64, 128}) {
    const std::string spec = absl::StrFormat("transform(bits=2,artifact=%s)", Calibrate(group_dim));
    const Coded coded = Code(spec, tensor, values);
    const auto chain = Resolve(spec, tensor);
    ASSERT_THAT(chain, IsOk());
    ASSERT_EQ(coded.payloads.size(), 1);
    size_t refused = 0;
    Bytes decoded(values.size());
    // The header, where layout and basis are, and some of the rest.
    for (size_t bit = 0; bit < 8 * coded.payloads[0].size(); bit += bit < 400 ? 1 : 97) {
      Bytes damaged = coded.payloads[0];
      damaged[bit / 8] ^= std::byte{1} << (bit % 8);
      const absl::Status status = chain->DecodeBlock(tensor, damaged, decoded);
      if (status.ok()) continue;
      ++refused;
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    }
    EXPECT_GT(refused, 200);
  }
}

TEST_F(TransformBasisTest, ValuesOfAnySizeAreCoded) {
  std::vector<float> values = ModelKeys(1, 64, 8);
  values[100] = 0x1p122f;
  values[101] = -0x1p122f;
  const std::string spec = absl::StrFormat("transform(step=0.01,artifact=%s)", Calibrate(128));
  EXPECT_GT(Code(spec, KeysOf(1, 64), BytesOf(values)).snr, 60);
}

}  // namespace
}  // namespace kvcompress
