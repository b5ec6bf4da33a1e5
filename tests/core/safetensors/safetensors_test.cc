#include "core/safetensors/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "core/base/byte_source.h"
#include "core/base/file.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress::safetensors {
namespace {

using kvcompress::testing::IsOk;
using kvcompress::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::Pair;

std::string LengthField(uint64_t length) {
  std::string bytes(8, '\0');
  StoreLE(length, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

std::string FileOf(absl::string_view json, size_t data_bytes = 0) {
  return absl::StrCat(LengthField(json.size()), json, std::string(data_bytes, 'd'));
}

absl::StatusOr<Header> Read(const std::string& file) { return ReadHeader(MemorySource(AsBytes(file))); }

// One tensor of a header.
std::string Tensor(absl::string_view name, absl::string_view dtype, absl::string_view shape,
                   absl::string_view offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":", offsets,
                      "}");
}

std::string Object(const std::vector<std::string>& members) {
  return absl::StrCat("{", absl::StrJoin(members, ","), "}");
}

std::string Ones(size_t rank) { return absl::StrCat("[", absl::StrJoin(std::vector<int>(rank, 1), ","), "]"); }

std::string Nested(size_t depth) { return absl::StrCat(std::string(depth, '['), std::string(depth, ']')); }

const std::string kOne = Tensor("a", "F32", "[1]", "[0,4]");

TEST(ReadHeaderTest, ReadsTensorsAndMetadata) {
  const std::string json = R"( "__metadata__":{"format":"pt","":""}, "k\u00e9y\n" : )"
                           R"({ "data_offsets" : [0, 12], "shape" : [3, 2], "dtype" : "F16" } })";
  const auto header = Read(FileOf("{" + json, 12));
  ASSERT_THAT(header, IsOk());
  EXPECT_TRUE(header->has_metadata);
  EXPECT_THAT(header->metadata, ElementsAre(Pair("", ""), Pair("format", "pt")));
  EXPECT_THAT(header->entries, ElementsAre(Entry{"k\xc3\xa9y\n", "F16", {3, 2}, 0, 12}));
  EXPECT_EQ(header->data_start, 8 + 1 + json.size());
}

TEST(ReadHeaderTest, OrdersByOffsetThenAsInTheFile) {
  const auto header = Read(FileOf(absl::StrCat("{", Tensor("late", "U8", "[3]", "[2,5]"), ",",  //
                                               Tensor("z-empty", "U8", "[0]", "[2,2]"), ",",    //
                                               Tensor("early", "I16", "[]", "[0,2]"), ",",      //
                                               Tensor("a-empty", "F64", "[0,7]", "[2,2]"), "}"),
                                  5));
  ASSERT_THAT(header, IsOk());
  std::vector<std::string> names;
  for (const Entry& entry : header->entries) names.push_back(entry.name);
  EXPECT_THAT(names, ElementsAre("early", "z-empty", "a-empty", "late"));
  ASSERT_NE(header->Find("late"), nullptr);
  EXPECT_EQ(header->Find("late")->bytes(), 3);
  EXPECT_EQ(header->Find("lat"), nullptr);
}

TEST(ReadHeaderTest, MetadataMayBeAbsentNullOrEmpty) {
  for (const auto& [json, has_metadata] : {std::pair("{}", false), std::pair(R"({"__metadata__":null})", false),
                                           std::pair(R"({"__metadata__":{}})", true)}) {
    const auto header = Read(FileOf(json));
    ASSERT_THAT(header, IsOk()) << json;
    EXPECT_EQ(header->has_metadata, has_metadata) << json;
    EXPECT_TRUE(header->metadata.empty() && header->entries.empty());
  }
}

// What the reference lets pass without a word, we do too.
TEST(ReadHeaderTest, Accepts) {
  struct {
    std::string json;
    size_t data_bytes;
  } const cases[] = {
      {absl::StrCat("{", kOne, "}   "), 4},
      {absl::StrCat("{", kOne, "}\n\t\r "), 4},
      {Object({Tensor("", "F32", "[1]", "[0,4]")}), 4},
      {Object({Tensor("\\u0000", "F32", "[1]", "[0,4]")}), 4},
      {Object({Tensor("a", "F32", "[18446744073709551615,0]", "[0,0]")}), 0},
      {Object({Tensor("a", "F32", "[0,9223372036854775808,4]", "[0,0]")}), 0},
      {Object({Tensor("a", "F6_E2M3", "[4]", "[0,3]")}), 3},
      {R"({"a":{"x":[{"dtype":1,"y":[null,true,-1,0.5,"s"]}],"dtype":"U8","x":{},"shape":[1],"data_offsets":[0,1]}})",
       1},
      {R"({"a":{"x":)" + Nested(125) + R"(,"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1},
      {absl::StrCat("{", Tensor("a", "U8", Ones(64), "[0,1]"), "}"), 1},
  };
  for (const auto& [json, data_bytes] : cases) EXPECT_THAT(Read(FileOf(json, data_bytes)), IsOk()) << json;
}

struct Refusal {
  const char* defect;
  std::string file;
  std::string message;
};

class RefusesTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusesTest, WithAMessage) {
  EXPECT_THAT(Read(GetParam().file),
              StatusIs(absl::StatusCode::kInvalidArgument, absl::StrCat("parse header: ", GetParam().message)));
}

std::string RefusalName(const ::testing::TestParamInfo<Refusal>& info) { return info.param.defect; }

INSTANTIATE_TEST_SUITE_P(
    Length, RefusesTest,
    ::testing::Values(
        Refusal{"EmptyFile", "", "a safetensors file begins with an 8-byte length, and this one has 0 bytes in all"},
        Refusal{"SevenBytes", std::string(7, '\0'),
                "a safetensors file begins with an 8-byte length, and this one has 7 bytes in all"},
        Refusal{"AboveTheLimit", LengthField(100'000'001) + "{}",
                "header length 100000001 is above the limit of 100000000 bytes; is this a safetensors file?"},
        Refusal{
            "Largest", LengthField(std::numeric_limits<uint64_t>::max()) + "{}",
            "header length 18446744073709551615 is above the limit of 100000000 bytes; is this a safetensors file?"},
        Refusal{"PastTheEnd", LengthField(3) + "{}", "header length 3 is more than the 2 bytes that follow it"},
        Refusal{"LimitPastTheEnd", LengthField(100'000'000) + "{}",
                "header length 100000000 is more than the 2 bytes that follow it"}),
    RefusalName);

// JSON that no parser would take, or that is none.
INSTANTIATE_TEST_SUITE_P(
    Json, RefusesTest,
    ::testing::Values(
        Refusal{"Empty", FileOf(""), "invalid JSON: the header does not begin with '{'"},
        Refusal{"Array", FileOf("[]"), "invalid JSON: the header does not begin with '{'"},
        Refusal{"LeadingSpace", FileOf(" {}"), "invalid JSON: the header does not begin with '{'"},
        Refusal{"ByteOrderMark", FileOf("\xef\xbb\xbf{}"), "invalid JSON: the header does not begin with '{'"},
        Refusal{"NotUtf8", FileOf("{\"\xff\":1}"), "invalid JSON: the header is not UTF-8"},
        Refusal{"EncodedSurrogate", FileOf("{\"\xed\xa0\x80\":1}"), "invalid JSON: the header is not UTF-8"},
        Refusal{"OnlyOpen", FileOf("{"), "invalid JSON: the header ends before its JSON does"},
        Refusal{"CutInAString", FileOf("{\"ab"), "invalid JSON: the header ends before its JSON does"},
        Refusal{"CutAfterATensor", FileOf(absl::StrCat("{", kOne), 4),
                "invalid JSON: the header ends before its JSON does"},
        Refusal{"TrailingText", FileOf("{}x"), "invalid JSON: syntax error at byte 3 of the header"},
        Refusal{"TrailingObject", FileOf("{} {}"), "invalid JSON: syntax error at byte 4 of the header"},
        Refusal{"TrailingZeroByte", FileOf(absl::string_view("{}\0", 3)),
                "invalid JSON: zero byte at byte 3 of the header"},
        Refusal{"ZeroByteInAString", FileOf(absl::string_view("{\"a\0\":1}", 8)),
                "invalid JSON: zero byte at byte 4 of the header"},
        Refusal{"TrailingComma", FileOf(absl::StrCat("{", kOne, ",}"), 4),
                "invalid JSON: syntax error at byte 55 of the header"},
        Refusal{"NoQuotes", FileOf("{a:1}"), "invalid JSON: syntax error at byte 2 of the header"},
        Refusal{"SingleQuotes", FileOf("{'a':1}"), "invalid JSON: syntax error at byte 2 of the header"},
        Refusal{"Comment", FileOf("{/**/}"), "invalid JSON: syntax error at byte 2 of the header"},
        Refusal{"RawControlCharacter", FileOf("{\"a\nb\":1}"), "invalid JSON: syntax error at byte 4 of the header"},
        Refusal{"LoneSurrogate", FileOf("{\"\\ud800\":1}"), "invalid JSON: syntax error at byte 9 of the header"},
        Refusal{"BadEscape", FileOf("{\"\\x\":1}"), "invalid JSON: syntax error at byte 4 of the header"},
        Refusal{"LeadingZero", FileOf("{\"a\":{\"x\":01}}"), "invalid JSON: syntax error at byte 12 of the header"},
        Refusal{"NotANumber", FileOf("{\"a\":{\"x\":NaN}}"), "invalid JSON: syntax error at byte 11 of the header"},
        Refusal{"HugeNumber", FileOf("{\"a\":{\"x\":1e999}}"), "invalid JSON: syntax error at byte 15 of the header"},
        Refusal{"Unbalanced", FileOf("{\"a\":{\"x\":[}}"), "invalid JSON: syntax error at byte 12 of the header"}),
    RefusalName);

// A tensor of the header with one thing wrong.
std::string Broken(absl::string_view from, absl::string_view to) {
  return FileOf(absl::StrCat("{", absl::StrReplaceAll(kOne, {{from, to}}), "}"), 4);
}

constexpr char kShapeRule[] = "tensor \"a\": shape must be an array of integers from 0 to 2^64 - 1";
constexpr char kOffsetsRule[] = "tensor \"a\": data_offsets must be an array of two integers from 0 to 2^64 - 1";

INSTANTIATE_TEST_SUITE_P(
    Fields, RefusesTest,
    ::testing::Values(
        Refusal{"TensorIsANumber", FileOf(R"({"a":1})"), "tensor \"a\" must be an object"},
        Refusal{"TensorIsNull", FileOf(R"({"a":null})"), "tensor \"a\" must be an object"},
        Refusal{"TensorIsAnArray", FileOf(R"({"a":["F32",[1],[0,4]]})", 4), "tensor \"a\" must be an object"},
        Refusal{"TensorIsEmpty", FileOf(R"({"a":{}})"), "tensor \"a\": dtype is missing"},
        Refusal{"NoDType", Broken("\"dtype\":\"F32\",", ""), "tensor \"a\": dtype is missing"},
        Refusal{"NoShape", Broken("\"shape\":[1],", ""), "tensor \"a\": shape is missing"},
        Refusal{"NoOffsets", Broken(",\"data_offsets\":[0,4]", ""), "tensor \"a\": data_offsets is missing"},
        Refusal{"CaseMatters", Broken("shape", "Shape"), "tensor \"a\": shape is missing"},
        Refusal{"TwoDTypes", Broken("\"dtype\":\"F32\"", R"("dtype":"F32","dtype":"F32")"),
                "tensor \"a\": dtype is given twice"},
        Refusal{"TwoShapes", Broken("\"shape\":[1]", R"("shape":[1],"shape":[1])"),
                "tensor \"a\": shape is given twice"},
        Refusal{"TwoOffsets", Broken("\"data_offsets\":[0,4]", R"("data_offsets":[0,4],"data_offsets":[0,4])"),
                "tensor \"a\": data_offsets is given twice"},
        Refusal{"DTypeIsANumber", Broken("\"F32\"", "32"), "tensor \"a\": dtype must be a string"},
        Refusal{"DTypeIsAnObject", Broken("\"F32\"", R"({"F32":null})"), "tensor \"a\": dtype must be a string"},
        Refusal{"UnknownDType", Broken("F32", "F33"), "tensor \"a\": unknown dtype \"F33\""},
        Refusal{"DTypeInLowerCase", Broken("F32", "f32"), "tensor \"a\": unknown dtype \"f32\""},
        Refusal{"EmptyDType", Broken("F32", ""), "tensor \"a\": unknown dtype \"\""},
        Refusal{"ShapeIsANumber", Broken("[1]", "1"), kShapeRule},
        Refusal{"ShapeIsNull", Broken("[1]", "null"), kShapeRule},
        Refusal{"ShapeIsAnObject", Broken("[1]", "{}"), kShapeRule},
        Refusal{"ShapeIsNested", Broken("[1]", "[[1]]"), kShapeRule},
        Refusal{"NegativeExtent", Broken("[1]", "[-1]"), kShapeRule},
        Refusal{"MinusZeroExtent", Broken("[1]", "[-0]"), kShapeRule},
        Refusal{"FractionalExtent", Broken("[1]", "[1.0]"), kShapeRule},
        Refusal{"ExponentInExtent", Broken("[1]", "[1e0]"), kShapeRule},
        Refusal{"ExtentIsText", Broken("[1]", "[\"1\"]"), kShapeRule},
        Refusal{"ExtentIsABool", Broken("[1]", "[true]"), kShapeRule},
        Refusal{"ExtentOfTwoTo64", Broken("[1]", "[18446744073709551616]"), kShapeRule},
        Refusal{"NoNumbersInOffsets", Broken("[0,4]", "[]"), kOffsetsRule},
        Refusal{"OneOffset", Broken("[0,4]", "[0]"), kOffsetsRule},
        Refusal{"ThreeOffsets", Broken("[0,4]", "[0,4,4]"), kOffsetsRule},
        Refusal{"OffsetsAreAnObject", Broken("[0,4]", "{\"begin\":0}"), kOffsetsRule},
        Refusal{"NegativeOffset", Broken("[0,4]", "[-4,0]"), kOffsetsRule},
        Refusal{"FractionalOffset", Broken("[0,4]", "[0,4.0]"), kOffsetsRule},
        Refusal{"OffsetOfTwoTo64", Broken("[0,4]", "[0,18446744073709551616]"), kOffsetsRule},
        Refusal{"TooManyDimensions", Broken("[1]", Ones(65)), "tensor \"a\": shape has more than 64 dimensions"},
        Refusal{"TooDeep", Broken("\"F32\"", "\"F32\",\"x\":" + Nested(126)),
                "tensor \"a\": a field is nested deeper than 127 levels"}),
    RefusalName);

INSTANTIATE_TEST_SUITE_P(
    Metadata, RefusesTest,
    ::testing::Values(
        Refusal{"Text", FileOf(R"({"__metadata__":"x"})"), "__metadata__ must be an object of strings"},
        Refusal{"List", FileOf(R"({"__metadata__":[]})"), "__metadata__ must be an object of strings"},
        Refusal{"Number", FileOf(R"({"__metadata__":{"k":1}})"),
                "__metadata__ must hold strings only, and \"k\" is none"},
        Refusal{"Nested", FileOf(R"({"__metadata__":{"k":{"a":"b"}}})"),
                "__metadata__ must hold strings only, and \"k\" is none"},
        Refusal{"Null", FileOf(R"({"__metadata__":{"k":null}})"),
                "__metadata__ must hold strings only, and \"k\" is none"},
        Refusal{"ATensor", FileOf(Object({Tensor("__metadata__", "U8", "[1]", "[0,1]")}), 1),
                "__metadata__ must hold strings only, and \"shape\" is none"},
        Refusal{"KeyTwice", FileOf(R"({"__metadata__":{"k":"1","k":"1"}})"), "__metadata__ has the key \"k\" twice"},
        Refusal{"Twice", FileOf(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ is given twice"},
        Refusal{"NullAndAgain", FileOf(R"({"__metadata__":null,"__metadata__":{}})"), "__metadata__ is given twice"}),
    RefusalName);

INSTANTIATE_TEST_SUITE_P(
    Layout, RefusesTest,
    ::testing::Values(
        Refusal{"SameNameTwice", FileOf(Object({kOne, Tensor("a", "F32", "[1]", "[4,8]")}), 8),
                "two tensors have the name \"a\""},
        Refusal{"SameNameEscaped", FileOf(Object({kOne, Tensor("\\u0061", "F32", "[1]", "[4,8]")}), 8),
                "two tensors have the name \"a\""},
        Refusal{"HoleAtTheStart", FileOf(Object({Tensor("a", "F32", "[1]", "[4,8]")}), 8),
                "tensor \"a\": data_offsets [4, 8] leave a hole: the tensor before ends at 0"},
        Refusal{"Hole", FileOf(Object({kOne, Tensor("b", "F32", "[1]", "[5,9]")}), 9),
                "tensor \"b\": data_offsets [5, 9] leave a hole: the tensor before ends at 4"},
        Refusal{"Overlap", FileOf(Object({kOne, Tensor("b", "F32", "[1]", "[3,7]")}), 7),
                "tensor \"b\": data_offsets [3, 7] overlap another tensor: the tensor before ends at 4"},
        Refusal{"SameBytesTwice", FileOf(Object({kOne, Tensor("b", "F32", "[1]", "[0,4]")}), 4),
                "tensor \"b\": data_offsets [0, 4] overlap another tensor: the tensor before ends at 4"},
        Refusal{"EmptyTensorInsideAnother", FileOf(Object({kOne, Tensor("b", "F32", "[0]", "[2,2]")}), 4),
                "tensor \"b\": data_offsets [2, 2] overlap another tensor: the tensor before ends at 4"},
        Refusal{"EndBeforeBegin", FileOf(Object({Tensor("a", "F32", "[1]", "[4,0]")}), 4),
                "tensor \"a\": data_offsets [4, 0] end before they begin"},
        Refusal{"OffsetsWrapAround", FileOf(Object({Tensor("a", "U8", "[1]", "[18446744073709551615,0]")}), 1),
                "tensor \"a\": data_offsets [18446744073709551615, 0] end before they begin"},
        Refusal{"SizeTooSmall", FileOf(Object({Tensor("a", "F32", "[1,3]", "[0,8]")}), 8),
                "tensor \"a\": data_offsets [0, 8] hold 8 bytes, and F32 [1, 3] needs 12"},
        Refusal{"SizeTooLarge", FileOf(Object({Tensor("a", "F16", "[]", "[0,4]")}), 4),
                "tensor \"a\": data_offsets [0, 4] hold 4 bytes, and F16 [] needs 2"},
        Refusal{"EmptyShapeWithBytes", FileOf(Object({Tensor("a", "U8", "[2,0]", "[0,2]")}), 2),
                "tensor \"a\": data_offsets [0, 2] hold 2 bytes, and U8 [2, 0] needs 0"},
        Refusal{"ElementsOverflow", FileOf(Object({Tensor("a", "U8", "[4294967296,4294967296]", "[0,0]")})),
                "tensor \"a\": the size of U8 [4294967296, 4294967296] overflows"},
        Refusal{"OverflowBeforeAZero", FileOf(Object({Tensor("a", "U8", "[9223372036854775808,4,0]", "[0,0]")})),
                "tensor \"a\": the size of U8 [9223372036854775808, 4, 0] overflows"},
        Refusal{"BytesOverflow", FileOf(Object({Tensor("a", "F32", "[4611686018427387904]", "[0,0]")})),
                "tensor \"a\": the size of F32 [4611686018427387904] overflows"},
        Refusal{"HalfAByte", FileOf(Object({Tensor("a", "F4", "[3]", "[0,2]")}), 2),
                "tensor \"a\": F4 [3] is not a whole number of bytes"},
        Refusal{"QuarterOfAByte", FileOf(Object({Tensor("a", "F6_E3M2", "[5]", "[0,4]")}), 4),
                "tensor \"a\": F6_E3M2 [5] is not a whole number of bytes"},
        Refusal{"TrailingByte", FileOf(Object({kOne}), 5), "1 bytes follow the last tensor"},
        Refusal{"BytesWithoutTensors", FileOf("{}", 3), "3 bytes follow the last tensor"},
        Refusal{"DataCutShort", FileOf(Object({kOne}), 3),
                "the tensors need 4 bytes of data, and the file has 3: it was cut short"},
        Refusal{"EndAtTwoTo64",
                FileOf(Object({kOne, Tensor("b", "U8", "[2305843009213693951]", "[4,2305843009213693955]")}), 4),
                "the tensors need 2305843009213693955 bytes of data, and the file has 4: it was cut short"}),
    RefusalName);

TEST(ReadHeaderTest, QuotesHostileNamesEscapedAndShort) {
  const auto message = [](absl::string_view name) { return Read(FileOf(absl::StrCat("{\"", name, "\":1}"))); };
  EXPECT_THAT(message("\\u001b[2J\\\"\\n\xc3\xa9"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "parse header: tensor \"\\033[2J\\\"\\n\xc3\xa9\" must be an object"));
  const std::string n64(64, 'n'), n63(63, 'n');
  EXPECT_THAT(message(n64),
              StatusIs(absl::StatusCode::kInvalidArgument, "parse header: tensor \"" + n64 + "\" must be an object"));
  EXPECT_THAT(message(n64 + "x"), StatusIs(absl::StatusCode::kInvalidArgument,
                                           "parse header: tensor \"" + n64 + "...\" must be an object"));
  EXPECT_THAT(message(n63 + "\xc3\xa9"), StatusIs(absl::StatusCode::kInvalidArgument,
                                                  "parse header: tensor \"" + n63 + "...\" must be an object"));
}

TEST(ReadHeaderTest, LimitsTheKeysOfMetadata) {
  std::string json = R"({"__metadata__":{"0":"")";
  for (size_t i = 1; i < kMaxMetadataEntries; ++i) absl::StrAppend(&json, ",\"", i, "\":\"\"");
  const auto most = Read(FileOf(json + "}}"));
  ASSERT_THAT(most, IsOk());
  EXPECT_EQ(most->metadata.size(), kMaxMetadataEntries);
  EXPECT_THAT(Read(FileOf(json + ",\"x\":\"\"}}")),
              StatusIs(absl::StatusCode::kInvalidArgument, "parse header: __metadata__ has more than 1000000 keys"));
}

// A parser that called itself for each level would have no stack left.
TEST(ReadHeaderTest, StopsAtDeepNesting) {
  EXPECT_THAT(Read(FileOf("{\"a\":{\"x\":" + std::string(10'000'000, '['))),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "parse header: tensor \"a\": a field is nested deeper than 127 levels"));
}

class FailingSource final : public ByteSource {
 public:
  uint64_t size() const override { return 100; }
  absl::StatusOr<ByteSpan> Get(uint64_t, size_t, std::vector<std::byte>&) const override {
    return absl::DataLossError("read x: input/output error");
  }
};

TEST(ReadHeaderTest, AFileOfAnotherKindIsNamed) {
  using std::string_literals::operator""s;
  const std::vector<std::pair<std::string, std::string>> kinds = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a Git LFS pointer, not the file"},
      {"PK\x03\x04\0\0\b\b\0\0\0\0\0\0"s, "a zip archive, as PyTorch (.pt, .bin)"},
      {"PK\x05\x06"s + std::string(18, '\0'), "an empty zip archive"},
      {"GGUF\3\0\0\0{\0\0\0\0\0\0\0"s, "a GGUF file"},  // of 123 tensors
      {"\x93NUMPY\1\0v\0{'descr': "s, "a NumPy array"},
      {"\x89HDF\r\n\x1a\n\0\0"s, "an HDF5 file"},
      {"\x1f\x8b\b\0\0\0\0\0\0\3"s, "compressed with gzip: unpack it first"},
      {"\x28\xb5\x2f\xfd\4\0"s, "compressed with zstd"},
      {"\xfd"
       "7zXZ\0\0\4"s,
       "compressed with xz"},
      {"BZh91AY&SY"s, "compressed with bzip2"},
      {"\x80\2}q\0(X\6\0\0\0"s, "a Python pickle"},
      {"\x80\4\x95\x10\0\0\0\0\0\0\0}\x94."s, "a Python pickle"},
      {"\x80\4N."s, "a Python pickle"},
      {"<!DOCTYPE html><html>", "an HTML page"},
      {"{\"weight_map\": {\"a\": \"b\"}}", "JSON text: an index of shards is read where its name ends in .json"},
      {"\n{\n  \"metadata\": {}\n}", "JSON text"}};
  for (const auto& [bytes, what] : kinds) {
    EXPECT_THAT(Read(bytes), StatusIs(absl::StatusCode::kInvalidArgument,
                                      ::testing::StartsWith(absl::StrCat("parse header: this is ", what))))
        << what;
  }
}

// Lengths whose first bytes are those of a pickle.
TEST(ReadHeaderTest, AHeaderLengthThatLooksLikeAnotherKindIsNone) {
  for (const size_t length : {0x280u, 0x480u}) {
    EXPECT_THAT(Read(FileOf("{" + std::string(length - 2, ' ') + "}")), IsOk());
    EXPECT_THAT(Read(FileOf("{" + std::string(length - 1, ' '))),
                StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("invalid JSON")));
  }
}

TEST(ReadHeaderTest, PassesReadErrorsOn) {
  EXPECT_THAT(ReadHeader(FailingSource()), StatusIs(absl::StatusCode::kDataLoss, "read x: input/output error"));
}

TEST(DTypeBitsTest, KnowsEveryTypeOfTheFormat) {
  const std::pair<std::string, unsigned> types[] = {
      {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},        {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  EXPECT_EQ(std::size(types), 22);
  for (const auto& [name, bits] : types) {
    EXPECT_EQ(DTypeBits(name), bits) << name;
    const std::string file = FileOf(Object({Tensor("a", name, "[8]", absl::StrCat("[0,", bits, "]"))}), bits);
    EXPECT_THAT(Read(file), IsOk()) << name;
  }
  EXPECT_EQ(DTypeBits("C128"), 0);
  EXPECT_EQ(DTypeBits(""), 0);
}

TEST(SerializeHeaderTest, WritesTheBytesOfTheFormat) {
  EXPECT_EQ(*SerializeHeader({}, {}, false), LengthField(8) + "{}      ");
  EXPECT_EQ(*SerializeHeader({}, {{"framework", "pt"}}, true),
            LengthField(40) + R"({"__metadata__":{"framework":"pt"}}     )");
  EXPECT_EQ(*SerializeHeader({}, {}, true), LengthField(24) + R"({"__metadata__":{}}     )");
  EXPECT_EQ(*SerializeHeader({{"z", "F16", {1, 2}, 0, 4}, {"a", "U8", {}, 4, 5}}, {}, false),
            LengthField(112) + R"({"z":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]},)"
                               R"("a":{"dtype":"U8","shape":[],"data_offsets":[4,5]}}     )");
}

TEST(SerializeHeaderTest, EscapesWhatJsonNeedsEscaped) {
  const std::string hostile("\"\\/\b\f\n\r\t\x01\x7f\0 \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 21);
  const std::vector<Entry> entries = {{hostile, "U8", {2}, 0, 2}, {"", "U8", {0}, 2, 2}};
  const std::map<std::string, std::string> metadata = {{hostile, hostile}, {"", ""}};
  const auto bytes = SerializeHeader(entries, metadata, true);
  ASSERT_THAT(bytes, IsOk());
  const auto header = Read(*bytes + "dd");
  ASSERT_THAT(header, IsOk());
  EXPECT_EQ(header->entries, entries);
  EXPECT_EQ(header->metadata, metadata);
  EXPECT_TRUE(header->has_metadata);
}

TEST(SerializeHeaderTest, PadsToAlignmentAndToTheLeastSize) {
  for (size_t name_size = 0; name_size < 20; ++name_size) {
    for (uint64_t min_bytes : {0, 8, 100, 101, 104, 4096}) {
      const auto bytes = SerializeHeader({{std::string(name_size, 'n'), "U8", {1}, 0, 1}}, {}, false, min_bytes);
      ASSERT_THAT(bytes, IsOk());
      EXPECT_EQ(bytes->size() % 8, 0);
      EXPECT_GE(bytes->size(), min_bytes);
      EXPECT_LT(bytes->size(), std::max<uint64_t>(min_bytes, 8 + name_size + 60) + 8);
      const auto header = Read(*bytes + "d");
      ASSERT_THAT(header, IsOk());
      EXPECT_EQ(header->data_start, bytes->size());
    }
  }
}

TEST(SerializeHeaderTest, RefusesWhatNoReaderWouldTake) {
  EXPECT_THAT(SerializeHeader({}, {}, false, 8 + kMaxHeaderBytes), IsOk());
  EXPECT_THAT(SerializeHeader({}, {}, false, 9 + kMaxHeaderBytes),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       "the safetensors header needs 100000001 bytes, above the limit of 100000000"));
}

// Whole files, for every program that reads one; each is named after its defect.
TEST(CorruptFilesTest, AreRefused) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(KVC_SOURCE_DIR "/tests/data/corrupt/safetensors")) {
    auto file = FileSource::Open(entry.path().native());
    ASSERT_THAT(file, IsOk());
    EXPECT_THAT(ReadHeader(**file),
                StatusIs(absl::StatusCode::kInvalidArgument, ::testing::StartsWith("parse header: ")))
        << entry.path();
    ++files;
  }
  EXPECT_GT(files, 0);
}

}  // namespace
}  // namespace kvcompress::safetensors
