#include <gmock/gmock.h>

#include <cmath>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_format.h"
#include "core/base/file.h"
#include "core/quality/quality.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

using Bytes = std::vector<std::byte>;

struct Bounds {
  double min_snr = 0;
  double max_error = 0;
  double min_cosine = 0;

  std::string spec() const {
    return absl::StrFormat("bounded(min_snr=%s,max_error=%s,min_cosine=%s)", FormatReal(min_snr), FormatReal(max_error),
                           FormatReal(min_cosine));
  }
};

// From the loosest to the tightest, of each kind.
const std::vector<std::vector<Bounds>> kLadders = {
    {{.min_snr = 10}, {.min_snr = 18}, {.min_snr = 25}, {.min_snr = 40}, {.min_snr = 60}},
    {{.max_error = 1}, {.max_error = 0.1}, {.max_error = 0.01}, {.max_error = 0.001}},
    {{.min_cosine = 0.9}, {.min_cosine = 0.99}, {.min_cosine = 0.999}, {.min_cosine = 0.99999}, {.min_cosine = 1}},
    {{.min_snr = 15, .max_error = 1, .min_cosine = 0.95}, {.min_snr = 30, .max_error = 0.05, .min_cosine = 0.9999}},
};

struct Outcome {
  size_t bytes = 0;
  ErrorSums sums;
  std::map<std::string, int> chosen;
  Bytes payloads;
};

// A tensor in blocks of `block` values.
Outcome EncodeBlocks(const std::string& spec, DType dtype, ByteSpan values, size_t block) {
  const CodecChain chain = MakeChain(spec, MakeTensorOfHeads(dtype, 1));
  const size_t width = DTypeSize(dtype);
  const TensorDesc tensor = MakeTensor("t", dtype, {values.size() / width});
  Outcome outcome;
  Bytes decoded;
  for (size_t first = 0; first * width < values.size(); first += block) {
    const ByteSpan own = values.subspan(first * width, std::min(block * width, values.size() - first * width));
    const size_t count = own.size() / width;
    Bytes payload(chain.MaxPayloadBytes(tensor, count));
    ErrorSums sums;
    const auto size = chain.EncodeBlock({tensor, first, count, own}, {}, payload, &sums);
    EXPECT_THAT(size, IsOk());
    payload.resize(*size);
    outcome.sums.Merge(sums);
    outcome.bytes += *size;
    ++outcome.chosen[*chain.ChosenCodec(tensor, count, payload)];
    outcome.payloads.insert(outcome.payloads.end(), payload.begin(), payload.end());
    decoded.resize(decoded.size() + own.size());
    EXPECT_THAT(chain.DecodeBlock(tensor, payload, MutableByteSpan(decoded).last(own.size())), IsOk());
  }
  // What is reported is what comes back.
  ErrorSums measured;
  simd::scalar::MeasureErrors(dtype, values.data(), decoded.data(), values.size() / width, measured);
  EXPECT_EQ(outcome.sums.count, measured.count);
  EXPECT_NEAR(outcome.sums.sum_error_squares, measured.sum_error_squares, 1e-5 * measured.sum_error_squares);
  EXPECT_NEAR(outcome.sums.max_abs_error, measured.max_abs_error, 1e-5 * measured.max_abs_error);
  return outcome;
}

void ExpectKept(const Bounds& bounds, const ErrorSums& sums) {
  const Quality quality = QualityOf(sums);
  if (bounds.min_snr > 0 && quality.snr_db) {
    EXPECT_GE(*quality.snr_db, bounds.min_snr);
  }
  if (bounds.max_error > 0) {
    EXPECT_LE(quality.max_error, bounds.max_error);
  }
  if (bounds.min_cosine > 0) {
    EXPECT_GE(quality.cosine_similarity, bounds.min_cosine);
  }
}

TEST(BoundedTest, EveryDistributionKeepsItsBoundsAndSizesRiseAsTheyTighten) {
  for (const DType dtype : kValueDTypes) {
    for (const Distribution distribution : kAllDistributions) {
      for (const size_t count : {1, 63, 5000, 40001}) {
        const Bytes values = MakeValues(dtype, count, distribution);
        for (const std::vector<Bounds>& ladder : kLadders) {
          size_t bytes = 0;
          for (const Bounds& bounds : ladder) {
            SCOPED_TRACE(absl::StrFormat("%s %d values, distribution %d, %s", DTypeName(dtype), count, distribution,
                                         bounds.spec()));
            const Outcome outcome = EncodeBlocks(bounds.spec(), dtype, values, 1 << 17);
            ExpectKept(bounds, outcome.sums);
            EXPECT_TRUE(count < 63 || outcome.bytes >= bytes);  // below, a scale takes as much as the values
            bytes = outcome.bytes;
          }
        }
      }
    }
  }
}

// Blocks of different scale and offset, a channel that sticks out, single outliers: what makes the tensor's variance
// and norm something else than its blocks'.
Bytes MakeRough(DType dtype, size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  const auto real = [&](float low, float high) {
    return low + (high - low) * static_cast<float>(random() % 4096) / 4096;
  };
  Bytes bytes(count * DTypeSize(dtype));
  float scale = 1;
  float offset = 0;
  const float outlier = real(1, 200);
  const size_t loud_channel = random() % 64;
  for (size_t i = 0; i < count; ++i) {
    if (i % 2048 == 0) {
      scale = std::exp2(real(-8, 4));
      offset = random() % 3 == 0 ? real(-50, 50) : 0;
    }
    float value = offset + scale * Bell(random);
    if (i % 64 == loud_channel) value *= 8;
    if (random() % 997 == 0) value *= outlier;
    StoreFromF32(dtype, std::clamp(value, -60000.0f, 60000.0f), bytes.data(), i);
  }
  return bytes;
}

TEST(BoundedTest, TwoHundredRoughTensorsOfManyBlocksKeepTheirBounds) {
  std::map<std::string, int> chosen;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const DType dtype = kValueDTypes[seed % kValueDTypes.size()];
    const Bytes values = MakeRough(dtype, 6000 + 331 * seed, seed);
    const size_t block = seed % 4 == 0 ? 20096 : 4096;  // sampled, and too small for that
    for (const std::vector<Bounds>& ladder : kLadders) {
      for (const Bounds& bounds : ladder) {
        SCOPED_TRACE(absl::StrFormat("tensor %d, %s", seed, bounds.spec()));
        const Outcome outcome = EncodeBlocks(bounds.spec(), dtype, values, block);
        ExpectKept(bounds, outcome.sums);
        for (const auto& [codec, blocks] : outcome.chosen) chosen[codec] += blocks;
      }
    }
  }
  EXPECT_GE(chosen.size(), 9u) << ::testing::PrintToString(chosen);
}

constexpr char kQuant10[] = "quant(bits=10,per=token,group=64,symmetric=true,outliers=0,layout=packed)";
constexpr char kQuant12[] = "quant(bits=12,per=token,group=64,symmetric=true,outliers=0,layout=packed)";
constexpr char kLossless[] = "planes(split=auto,delta=auto)";

TEST(BoundedTest, BoundsThatIntNReachesAreKeptByIt) {
  constexpr size_t kCount = 1 << 17;
  const Bytes values = MakeValues(DType::kF16, kCount, Distribution::kGaussian);
  const struct {
    Bounds bounds;
    const char* codec;
  } cases[] = {
      {{.min_snr = 2}, "int2(group=32)"},
      {{.min_snr = 12}, "int3(group=64)"},
      {{.min_snr = 18}, "int4(group=128)"},
      {{.min_cosine = 0.99}, "int4(group=128)"},
      {{.min_snr = 30}, "int6(group=64)"},
      {{.min_snr = 40}, "int8(group=64)"},
      {{.max_error = 0.3}, "int4(group=128)"},
      {{.min_snr = 50}, kQuant10},
      {{.min_snr = 60}, kQuant12},
      {{.min_snr = 75}, kLossless},
      {{.min_snr = 5, .max_error = 1e-6}, kLossless},
      {{.min_cosine = 1}, kLossless},
  };
  for (const auto& one : cases) {
    const Outcome outcome = EncodeBlocks(one.bounds.spec(), DType::kF16, values, kCount);
    EXPECT_THAT(outcome.chosen, ::testing::ElementsAre(::testing::Pair(one.codec, 1)))
        << one.bounds.spec() << ": " << QualityOf(outcome.sums).snr_db.value_or(-1) << " dB, max error "
        << outcome.sums.max_abs_error;
  }
}

// Scales are multiples of 2^-133, and so what is decoded: of values about as small, more bits change nothing.
TEST(BoundedTest, OfTinyValuesNoCodecThatKeepsTheBoundsIsPassedOver) {
  const std::vector<std::string> ladder = {"int2(group=32)", "int3(group=64)", "int4(group=128)", "int4(group=64)",
                                           "int4(group=32)", "int5(group=64)", "int6(group=64)",  "int8(group=64)",
                                           "int8(group=32)", kQuant10,         kQuant12,          kLossless};
  constexpr size_t kCount = 1 << 15;
  std::set<std::string> all_chosen;
  for (const float factor : {0x1p-134f, 0x1p-132f, 0x1p-130f, 0x1p-127f, 0x1p-124f}) {
    std::mt19937 random(1);
    Bytes values(kCount * sizeof(float));
    for (size_t i = 0; i < kCount; ++i) StoreFromF32(DType::kF32, Bell(random) * factor, values.data(), i);
    for (const double cosine : {0.9, 0.99, 0.999, 0.99999}) {
      const Bounds bounds{.min_cosine = cosine};
      const Outcome outcome = EncodeBlocks(bounds.spec(), DType::kF32, values, kCount);
      ExpectKept(bounds, outcome.sums);
      const std::string chosen = outcome.chosen.begin()->first;
      all_chosen.insert(chosen);
      const double allowed = (1 - cosine * cosine) * outcome.sums.sum_squares;
      for (const std::string& cheaper : ladder) {
        if (cheaper == chosen) break;
        const Outcome other = EncodeBlocks(cheaper, DType::kF32, values, kCount);
        EXPECT_GT(other.sums.sum_error_squares, 0.999 * allowed) << factor << ' ' << cosine << ' ' << cheaper;
      }
    }
  }
  EXPECT_GT(all_chosen.size(), 4);
}

TEST(BoundedTest, BlocksChooseForThemselves) {
  Bytes values = MakeValues(DType::kF16, size_t{3} * 4096, Distribution::kGaussian);
  StoreFromF32(DType::kF16, std::numeric_limits<float>::quiet_NaN(), values.data(), 5000);
  for (size_t i = 8192; i < 12288; ++i) StoreFromF32(DType::kF16, 0, values.data(), i);
  const Outcome outcome = EncodeBlocks("bounded(min_snr=18)", DType::kF16, values, 4096);
  EXPECT_THAT(outcome.chosen,
              ::testing::UnorderedElementsAre(::testing::Pair("int4(group=128)", 1), ::testing::Pair(kLossless, 1),
                                              ::testing::Pair("int2(group=32)", 1)));
}

// The tightest bound, to the last digits, with which a block of `values` still gets what `loose` gives it.
double EdgeOf(Bounds (*bounds)(double), double loose, double tight, DType dtype, const Bytes& values) {
  const auto chosen = [&](double bound) {
    return EncodeBlocks(bounds(bound).spec(), dtype, values, values.size()).chosen;
  };
  const auto cheap = chosen(loose);
  EXPECT_NE(chosen(tight), cheap);
  for (int i = 0; i < 40; ++i) {
    const double middle = (loose + tight) / 2;
    (chosen(middle) == cheap ? loose : tight) = middle;
  }
  return loose;
}

// There the block has no more errors than it may; and there it would show if what is chosen depended on the last digits
// of sums of vectors, which differ between instruction sets.
TEST(BoundedTest, AtTheEdgeBoundsAreKeptAndEveryInstructionSetMakesTheSameBytes) {
  const struct {
    Bounds (*bounds)(double);
    double loose;
    double tight;
  } kinds[] = {
      {[](double bound) { return Bounds{.min_snr = bound}; }, 15, 35},
      {[](double bound) { return Bounds{.max_error = bound}; }, 100, 0.01},
      {[](double bound) { return Bounds{.min_cosine = bound}; }, 0.9, 0.9999},
  };
  EXPECT_GT(UsableTargets().size(), 1u);
  for (const DType dtype : kValueDTypes) {
    for (const uint32_t seed : {7, 8}) {
      const Bytes values = MakeRough(dtype, 12000, seed);
      for (const auto& kind : kinds) {
        const double edge = EdgeOf(kind.bounds, kind.loose, kind.tight, dtype, values);
        for (int step = -3; step <= 3; ++step) {
          const Bounds bounds = kind.bounds(edge * (1 + 1e-10 * step));
          SCOPED_TRACE(absl::StrFormat("%s, %s", DTypeName(dtype), bounds.spec()));
          const Outcome expected = EncodeBlocks(bounds.spec(), dtype, values, values.size());
          ExpectKept(bounds, expected.sums);
          for (const int64_t target : UsableTargets()) {
            const WithTarget with_target(target);
            const Outcome outcome = EncodeBlocks(bounds.spec(), dtype, values, values.size());
            EXPECT_EQ(outcome.payloads, expected.payloads);
            ExpectKept(bounds, outcome.sums);
          }
        }
      }
    }
  }
}

TEST(BoundedTest, RealCachesKeepTheirBounds) {
  const auto file = FileSource::Open(KVC_SOURCE_DIR "/tests/data/smollm2.256.bf16.safetensors");
  ASSERT_THAT(file, IsOk());
  const auto header = safetensors::ReadHeader(**file);
  ASSERT_THAT(header, IsOk());
  std::vector<std::byte> scratch;
  for (const safetensors::Entry& entry : header->entries) {
    const ByteSpan values = *(*file)->Get(header->data_start + entry.begin, entry.bytes(), scratch);
    for (const std::vector<Bounds>& ladder : kLadders) {
      for (const Bounds& bounds : ladder) {
        SCOPED_TRACE(entry.name + " " + bounds.spec());
        ExpectKept(bounds, EncodeBlocks(bounds.spec(), DType::kBF16, values, 8192).sums);
      }
    }
    EXPECT_LT(EncodeBlocks("bounded(min_cosine=0.98)", DType::kBF16, values, 8192).bytes, entry.bytes() / 3);
  }
}

// With 8 bits a value or more an integer takes no less than F8 itself.
TEST(BoundedTest, OfF8NoBlockTakesMoreThanItsValues) {
  for (const DType dtype : {DType::kF8E4M3, DType::kF8E5M2}) {
    const Bytes values = MakeValues(dtype, 40000, Distribution::kGaussian);
    for (const double snr : {10.0, 20.0, 30.0, 40.0, 100.0}) {
      const Bounds bounds{.min_snr = snr};
      const Outcome outcome = EncodeBlocks(bounds.spec(), dtype, values, 1 << 17);
      ExpectKept(bounds, outcome.sums);
      EXPECT_LE(outcome.bytes, values.size() + 100) << snr;
      EXPECT_TRUE(snr > 15 || outcome.bytes < values.size() * 3 / 4) << snr;
      EXPECT_TRUE(snr < 100 || outcome.sums.max_abs_error == 0);
    }
  }
}

TEST(BoundedTest, ModesThatNoEncoderWritesAreDataLoss) {
  const CodecChain chain = MakeChain("bounded(min_snr=18)");
  const Bytes values = MakeValues(DType::kF16, 256, Distribution::kGaussian);
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {256});
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  ASSERT_THAT(payload, IsOk());
  const size_t mode_at = payload->size() - (1 + 4 + 128);  // of the streams of int4(group=128), after the table
  Bytes decoded(values.size());
  for (unsigned mode = 0; mode < 256; ++mode) {
    Bytes damaged = *payload;
    damaged[mode_at] = static_cast<std::byte>(mode);
    const absl::Status status = chain.DecodeBlock(tensor, damaged, decoded);
    if (damaged == *payload) {
      EXPECT_THAT(status, IsOk());
    } else {
      EXPECT_TRUE(absl::IsDataLoss(status)) << mode << ": " << status;
    }
    EXPECT_EQ(chain.ChosenCodec(tensor, 256, damaged).ok(), mode <= 19);
  }
}

TEST(BoundedTest, SpecsNeedABound) {
  for (const char* spec : {"bounded", "bounded()", "bounded(min_snr=0,max_error=0)"}) {
    EXPECT_THAT(ChainSpec::Parse(spec),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         "bounded needs a bound above 0: min_snr, min_token_snr, max_error or min_cosine"));
  }
  for (const char* spec : {"bounded(min_snr=201)", "bounded(min_cosine=1.01)", "bounded(max_error=-1)",
                           "bounded(min_snr=nan)", "bounded(max_error=inf)"}) {
    EXPECT_THAT(ChainSpec::Parse(spec), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::_)) << spec;
  }
  EXPECT_EQ(ChainSpec::Parse("bounded(min_cosine=0.990)")->text(), "bounded(min_snr=0,max_error=0,min_cosine=0.99)");
  EXPECT_EQ(ChainSpec::Parse("bounded(min_token_snr=30)")->text(),
            "bounded(min_snr=0,min_token_snr=30,max_error=0,min_cosine=0)");
}

}  // namespace
}  // namespace kvcompress
