#include "core/base/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "core/base/utf8.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

auto IsInvalid(absl::string_view text) {
  return testing::StatusIs(absl::StatusCode::kInvalidArgument, std::string(text));
}

TEST(NumElementsTest, MultipliesTheShape) {
  EXPECT_EQ(*NumElements({}), 1);
  EXPECT_EQ(*NumElements({7}), 7);
  EXPECT_EQ(*NumElements({1, 2, 256, 64}), 32768);
  EXPECT_EQ(*NumElements({1, 1, 1, 1, 1, 1, 1, 3}), 3);
  EXPECT_EQ(*NumElements({uint64_t{1} << 24, uint64_t{1} << 24}), kMaxTensorElements);
}

TEST(NumElementsTest, ZeroExtentWinsOverHugeOnes) {
  EXPECT_EQ(*NumElements({0}), 0);
  EXPECT_EQ(*NumElements({kMax, kMax, 0}), 0);
  EXPECT_EQ(*NumElements({0, kMax}), 0);
}

TEST(NumElementsTest, RefusesWhatIsTooLarge) {
  EXPECT_THAT(NumElements({kMaxTensorElements + 1}), IsInvalid("shape [281474976710657] has more than 2^48 elements"));
  EXPECT_THAT(NumElements({kMax, kMax}),
              IsInvalid("shape [18446744073709551615, 18446744073709551615] has more than 2^48 elements"));
  // 2^32 * 2^32 is 0 in 64 bits.
  EXPECT_THAT(NumElements({uint64_t{1} << 32, uint64_t{1} << 32}),
              IsInvalid("shape [4294967296, 4294967296] has more than 2^48 elements"));
  EXPECT_THAT(NumElements({1, 1, 1, 1, 1, 1, 1, 1, 1}), IsInvalid("rank 9 is above the limit of 8"));
}

TEST(KvNameTest, ReadsLayerAndKind) {
  EXPECT_EQ(ParseKvName("layer_0_key").layer, 0);
  EXPECT_TRUE(ParseKvName("layer_0_key").is_key);
  EXPECT_EQ(ParseKvName("layer_31_value").layer, 31);
  EXPECT_FALSE(ParseKvName("layer_31_value").is_key);
  EXPECT_EQ(ParseKvName("layer_999999999_key").layer, 999999999);
}

TEST(KvNameTest, RefusesEverythingElse) {
  for (const char* name : {"", "layer_", "layer__key", "layer_1", "layer_1_keys", "xlayer_1_key", "layer_-1_key",
                           "layer_+1_key", "layer_1.5_key", "layer_ 1_key", "layer_1000000000_key", "layer_key",
                           "layer_99999999999999999999_value", "Layer_1_key"}) {
    EXPECT_EQ(ParseKvName(name).layer, -1) << name;
    EXPECT_FALSE(ParseKvName(name).is_key) << name;
  }
}

TEST(DefaultAxesTest, OnlyRank4CachesHaveRoles) {
  EXPECT_THAT(DefaultAxes("layer_3_value", 4),
              ElementsAre(AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim));
  EXPECT_THAT(DefaultAxes("layer_3_value", 3), ElementsAre(AxisRole::kOther, AxisRole::kOther, AxisRole::kOther));
  EXPECT_THAT(DefaultAxes("weights", 2), ElementsAre(AxisRole::kOther, AxisRole::kOther));
  EXPECT_THAT(DefaultAxes("layer_3_value", 0), ElementsAre());
}

TensorDesc Desc(std::string name, std::vector<uint64_t> shape) {
  std::vector<AxisRole> axes(shape.size(), AxisRole::kOther);
  return {std::move(name), DType::kF16, std::move(shape), std::move(axes)};
}

TEST(ValidateTensorTest, CountsElements) {
  EXPECT_EQ(*ValidateTensor(Desc("x", {2, 3})), 6);
  EXPECT_EQ(*ValidateTensor(Desc("x", {})), 1);
  EXPECT_EQ(*ValidateTensor(Desc("x", {4, 0})), 0);
  EXPECT_EQ(*ValidateTensor(Desc(std::string(1024, 'n'), {1})), 1);
}

TEST(ValidateTensorTest, ElementsOfLessThanAByteAreCountedInBytes) {
  TensorDesc desc = Desc("x", {3, 4});
  for (const auto& [dtype, words] : {std::pair{DType::kF4, 6u}, {DType::kF6E2M3, 9u}, {DType::kF6E3M2, 9u}}) {
    desc.dtype = dtype;
    EXPECT_EQ(*ValidateTensor(desc), words) << DTypeName(dtype);
    EXPECT_EQ(DTypeSize(dtype), 1u);
  }
  desc.shape = {1, 3};
  EXPECT_THAT(ValidateTensor(desc), IsInvalid("tensor \"x\": F6_E3M2 [1, 3] is not a whole number of bytes"));
  desc.dtype = DType::kU64;
  desc.shape = {kMaxTensorElements, 1};
  EXPECT_EQ(*ValidateTensor(desc), kMaxTensorElements);
}

TEST(ValidateTensorTest, RefusesBadNames) {
  for (const std::string& name : {std::string(), std::string(1025, 'n'), std::string("\xff")}) {
    EXPECT_THAT(ValidateTensor(Desc(name, {1})), IsInvalid("tensor name must be 1 to 1024 bytes of UTF-8"));
  }
}

TEST(ValidateTensorTest, NamesTheTensorInErrors) {
  TensorDesc desc = Desc("layer_0_key", {1, 2, 3});
  desc.axes.pop_back();
  EXPECT_THAT(ValidateTensor(desc), IsInvalid("tensor \"layer_0_key\": 2 axis roles for rank 3"));
  EXPECT_THAT(ValidateTensor(Desc("layer_0_key", {kMax, 2})),
              IsInvalid("tensor \"layer_0_key\": shape [18446744073709551615, 2] has more than 2^48 elements"));
  EXPECT_THAT(ValidateTensor(Desc("layer_0_key", {1, 1, 1, 1, 1, 1, 1, 1, 1})),
              IsInvalid("tensor \"layer_0_key\": rank 9 is above the limit of 8"));
}

TEST(DescribeTensorTest, ShowsNameTypeAndShape) {
  EXPECT_EQ(DescribeTensor(Desc("layer_0_key", {1, 2, 256, 64})), "layer_0_key F16 [1, 2, 256, 64]");
  EXPECT_EQ(DescribeTensor(Desc("x", {})), "x F16 []");
}

// Every scalar value of Unicode, encoded here, is accepted; surrogates and what lies above are not.
TEST(Utf8Test, AcceptsExactlyTheScalarValues) {
  for (uint32_t c = 0; c <= 0x110000; ++c) {
    std::string text;
    const auto add = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
      add(c);
    } else if (c < 0x800) {
      add(0xc0 | c >> 6);
      add(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
      add(0xe0 | c >> 12);
      add(0x80 | (c >> 6 & 0x3f));
      add(0x80 | (c & 0x3f));
    } else {
      add(0xf0 | c >> 18);
      add(0x80 | (c >> 12 & 0x3f));
      add(0x80 | (c >> 6 & 0x3f));
      add(0x80 | (c & 0x3f));
    }
    const bool is_scalar = c < 0xd800 || (c > 0xdfff && c <= 0x10ffff);
    ASSERT_EQ(IsUtf8(text), is_scalar) << std::hex << c;
    // Without its last byte, and followed by a stray one, no character is whole.
    if (c >= 0x80) {
      ASSERT_FALSE(IsUtf8(text.substr(0, text.size() - 1))) << std::hex << c;
    }
    ASSERT_FALSE(IsUtf8(text + "\x80")) << std::hex << c;
  }
}

TEST(Utf8Test, RefusesOverlongForms) {
  for (const char* text : {"\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xf0\x80\x80\x80",
                           "\xf0\x8f\xbf\xbf", "\xf5\x80\x80\x80", "\xff", "\xfe", "\x80", "a\xc3", "\xc3(", "\xe2\x82",
                           "\xe2(\xa1", "\xf0\x9f\x98", "\xf8\x88\x80\x80\x80"}) {
    EXPECT_FALSE(IsUtf8(text)) << ::testing::PrintToString(std::string(text));
  }
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_TRUE(IsUtf8(std::string_view("a\0b", 3)));
}

}  // namespace
}  // namespace kvcompress
