#include "client/cli/sweep.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_format.h"
#include "client/cli/sweep_report.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::ordered_json;

constexpr uint64_t kNoLimit = uint64_t{1} << 40;

// A file in memory with gaussian values, whose bytes tell where a value is from.
struct TestFile {
  safetensors::Header header;
  std::vector<std::byte> bytes;

  void Add(const std::string& name, DType dtype, const std::vector<uint64_t>& shape) {
    uint64_t elements = 1;
    for (const uint64_t extent : shape) elements *= extent;
    const std::vector<std::byte> values =
        MakeValues(dtype, elements, Distribution::kGaussian, static_cast<uint32_t>(header.entries.size() + 1));
    header.entries.push_back({name, std::string(DTypeName(dtype)), shape, bytes.size(), bytes.size() + values.size()});
    bytes.insert(bytes.end(), values.begin(), values.end());
  }

  FileSample Sample(uint64_t max_bytes = kNoLimit) const {
    absl::StatusOr<FileSample> sample = SampleFile(MemorySource(ByteSpan(bytes)), header, max_bytes);
    EXPECT_THAT(sample.status(), IsOk());
    return *std::move(sample);
  }
};

TEST(SampleFile, ASmallFileIsTakenAsItIs) {
  TestFile file;
  file.Add("layer_0_key", DType::kF16, {1, 2, 32, 64});
  file.Add("empty", DType::kF32, {0, 3});
  file.Add("scalar", DType::kBF16, {});
  const FileSample sample = file.Sample();
  EXPECT_TRUE(sample.whole());
  ASSERT_EQ(sample.tensors.size(), 3u);
  EXPECT_EQ(sample.tensors[0].tensor, MakeTensor("layer_0_key", DType::kF16, {1, 2, 32, 64}));
  EXPECT_TRUE(std::equal(sample.tensors[0].values.begin(), sample.tensors[0].values.end(), file.bytes.begin()));
  EXPECT_TRUE(sample.tensors[0].first_rows.empty());
}

TEST(SampleFile, OfALargeFileEvenlySpacedRunsOfEveryTensor) {
  TestFile file;
  for (const char* name : {"layer_0_key", "layer_0_value"}) file.Add(name, DType::kF16, {2, 4, 4096, 64});
  file.Add("flat", DType::kF32, {3'000'001});
  const uint64_t limit = file.bytes.size() / 4;
  const FileSample sample = file.Sample(limit);
  EXPECT_FALSE(sample.whole());
  FileRotary rotary({}, std::nullopt, std::nullopt);
  EXPECT_THAT(Sweep(sample, file.header, rotary, {}).Measure("heads(0-:int4)"),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("do not keep the heads apart")));
  EXPECT_LE(sample.bytes, limit);
  EXPECT_GT(sample.bytes, limit / 2);
  ASSERT_EQ(sample.tensors.size(), 3u);
  uint64_t begin = 0;
  for (size_t k = 0; k < 3; ++k) {
    const SampledTensor& tensor = sample.tensors[k];
    const std::vector<uint64_t>& shape = tensor.tensor.shape;
    const uint64_t rows = shape[shape.size() - 2];
    const uint64_t run_bytes = rows * shape.back() * DTypeSize(tensor.tensor.dtype);
    ASSERT_EQ(tensor.values.size(), tensor.first_rows.size() * run_bytes);
    ASSERT_GT(tensor.first_rows.size(), 2u);
    // Each run is at its place in the file, after the run before it, and its first row is the one that it names.
    auto from = file.bytes.begin() + static_cast<ptrdiff_t>(begin);
    const auto end = file.bytes.begin() + static_cast<ptrdiff_t>(file.header.entries[k].end);
    for (size_t run = 0; run < tensor.first_rows.size(); ++run) {
      const auto values = tensor.values.begin() + static_cast<ptrdiff_t>(run * run_bytes);
      const auto found = std::search(from, end, values, values + static_cast<ptrdiff_t>(run_bytes));
      ASSERT_NE(found, end) << tensor.tensor.name << " run " << run;
      const uint64_t row = static_cast<uint64_t>(found - file.bytes.begin() - static_cast<ptrdiff_t>(begin)) /
                           (shape.back() * DTypeSize(tensor.tensor.dtype));
      EXPECT_EQ(row % (k < 2 ? 4096 : 3'000'001), tensor.first_rows[run]);
      from = found + static_cast<ptrdiff_t>(run_bytes);
    }
    begin = file.header.entries[k].end;
  }
  EXPECT_EQ(sample.tensors[0].tensor.axes[2], AxisRole::kSeq);
}

TEST(SampleFile, RefusesWhatCompressionRefuses) {
  TestFile file;
  file.Add("a", DType::kF16, {4});
  file.header.entries[0].dtype = "I128";
  const auto sample = SampleFile(MemorySource(ByteSpan(file.bytes)), file.header, kNoLimit);
  EXPECT_THAT(std::string(sample.status().message()), HasSubstr("unsupported data type: I128"));
}

TEST(SweepSpecs, EveryExampleAndNoneTwice) {
  const std::vector<std::string> specs = SweepSpecs();
  EXPECT_EQ(std::set<std::string>(specs.begin(), specs.end()).size(), specs.size());
  for (const CodecRow* row : AllCodecs()) {
    for (const std::string_view example : row->examples) {
      const ChainSpec spec = *ChainSpec::Parse(example);
      const bool turns = spec.rotary().value_or(simd::RotaryEmbedding{}) != simd::RotaryEmbedding{};
      EXPECT_EQ(std::count(specs.begin(), specs.end(), spec.text()), turns ? 0 : 1) << example;
    }
  }
  EXPECT_EQ(std::vector<std::string>(specs.begin(), specs.begin() + 3),
            std::vector<std::string>({"kv4", "kv3", "kv2"}));
  for (const NamedChain& named : AllNamedChains()) {
    const std::string_view spec = named.differs() ? named.name : named.chain;
    EXPECT_EQ(std::count(specs.begin(), specs.end(), spec), 1) << named.name;
    EXPECT_EQ(NameOfChain(spec), named.name);
  }
  EXPECT_EQ(NameOfChain("int4(group=32)"), "");
  EXPECT_THAT(specs, ::testing::IsSupersetOf({"int3(group=128)", "int8(group=32)", "raw|zstd(level=19)"}));
}

TEST(Sweep, FiguresOfDecodedValues) {
  TestFile file;
  file.Add("layer_0_key", DType::kF16, {1, 2, 64, 64});
  const FileSample sample = file.Sample();
  FileRotary rotary({}, std::nullopt, std::nullopt);
  Sweep sweep(sample, file.header, rotary, {});
  const absl::StatusOr<SpecFigures> int8 = sweep.Measure("int8(group=64)");
  ASSERT_THAT(int8.status(), IsOk());
  EXPECT_EQ(int8->tensors[0].sums.count, 8192u);
  EXPECT_GT(int8->tensors[0].sums.max_abs_error, 0);
  EXPECT_LT(int8->tensors[0].sums.max_abs_error, 0.51 * 6 / 127);
  EXPECT_GT(int8->encode_seconds, 0);
  EXPECT_GT(int8->decode_seconds, 0);
  EXPECT_GT(int8->compressed_bytes, int8->tensors[0].frame_bytes);
  const absl::StatusOr<SpecFigures> raw = sweep.Measure("raw");
  ASSERT_THAT(raw.status(), IsOk());
  EXPECT_EQ(raw->tensors[0].sums.max_abs_error, 0);
  EXPECT_GT(sweep.MeasureCopy(), 0);
}

TEST(Sweep, ThreadsShareTheTensorsAndChangeNoByte) {
  TestFile file;
  for (int layer = 0; layer < 3; ++layer) file.Add(absl::StrFormat("layer_%d_key", layer), DType::kF16, {1, 2, 64, 64});
  file.Add("empty", DType::kF16, {0});
  const FileSample sample = file.Sample();
  FileRotary rotary({}, std::nullopt, std::nullopt);
  Sweep one(sample, file.header, rotary, {});
  Sweep three(sample, file.header, rotary, {.threads = 3});
  EXPECT_EQ(one.threads(), 1u);
  EXPECT_EQ(three.threads(), 3u);
  EXPECT_GT(three.MeasureCopy(), 0);
  for (const char* spec : {"kv3", "raw|zstd(level=1)"}) {
    const absl::StatusOr<SpecFigures> alone = one.Measure(spec);
    const absl::StatusOr<SpecFigures> shared = three.Measure(spec);
    ASSERT_THAT(alone.status(), IsOk());
    ASSERT_THAT(shared.status(), IsOk());
    EXPECT_EQ(alone->compressed_bytes, shared->compressed_bytes);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(alone->tensors[i].frame_bytes, shared->tensors[i].frame_bytes);
      EXPECT_EQ(alone->tensors[i].sums.sum_error_squares, shared->tensors[i].sums.sum_error_squares);
    }
  }
  file.Add("nan", DType::kF32, {64});
  StoreFromF32(DType::kF32, std::numeric_limits<float>::quiet_NaN(), file.bytes.data() + file.header.entries[4].begin,
               5);
  const FileSample with_nan = file.Sample();
  EXPECT_THAT(Sweep(with_nan, file.header, rotary, {.threads = 3}).Measure("int4").status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"nan\"")));
}

TEST(Sweep, KeysAreTurnedBackAsTheFileOrTheFlagsSay) {
  TestFile file;
  file.Add("layer_0_key", DType::kF16, {1, 2, 64, 64});
  const FileSample sample = file.Sample();
  FileRotary none({}, std::nullopt, std::nullopt);
  ASSERT_THAT(Sweep(sample, file.header, none, {}).Measure("kv3").status(), IsOk());
  EXPECT_EQ(none.use(), std::nullopt);
  FileRotary of_file({{"rope_theta", "500000"}}, std::nullopt, std::nullopt);
  ASSERT_THAT(Sweep(sample, file.header, of_file, {}).Measure("int4").status(), IsOk());
  EXPECT_EQ(of_file.use(), std::nullopt);
  ASSERT_THAT(Sweep(sample, file.header, of_file, {}).Measure("kv3").status(), IsOk());
  ASSERT_TRUE(of_file.use());
  EXPECT_EQ(of_file.use()->rotary.theta, 500000);
  EXPECT_EQ(of_file.use()->source, "metadata");
}

TEST(Sweep, ValuesThatACodecDoesNotTake) {
  TestFile file;
  file.Add("a", DType::kF32, {64});
  StoreFromF32(DType::kF32, std::numeric_limits<float>::quiet_NaN(), file.bytes.data(), 5);
  const FileSample sample = file.Sample();
  FileRotary rotary({}, std::nullopt, std::nullopt);
  Sweep sweep(sample, file.header, rotary, {});
  EXPECT_EQ(sweep.Measure("int4(group=64)").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(sweep.Measure("raw").status(), IsOk());
}

TEST(SweepReport, NullForTheInfiniteSnrAndTheFrontsByKind) {
  TestFile file;
  file.Add("layer_0_key", DType::kF16, {1, 2, 64, 64});
  file.Add("layer_0_value", DType::kF16, {1, 2, 64, 64});
  const FileSample sample = file.Sample();
  FileRotary rotary({}, std::nullopt, std::nullopt);
  Sweep sweep(sample, file.header, rotary, {});
  SweepResult result;
  result.input = "cache.safetensors";
  for (const char* spec : {"int8(group=64)", "raw", "int4(group=64)"}) result.specs.push_back(*sweep.Measure(spec));
  result.refused = {{"int9", "no such codec"}};
  const Json json = Json::parse(MakeSweepReport(sample, result).json);
  EXPECT_EQ(json["sampled"], false);
  EXPECT_TRUE(json["specs"][1]["snr_db"].is_null());
  EXPECT_NEAR(json["specs"][0]["keys"]["bits_per_value"], 8.25, 0.2);
  EXPECT_FALSE(json["specs"][0].contains("other"));
  for (const Json& spec : json["specs"]) EXPECT_EQ(spec["pareto"], Json({"all", "keys", "values"})) << spec;
  EXPECT_EQ(json["refused"][0]["error"], "no such codec");
}

TEST(SweepReport, WhenACodecPays) {
  TestFile file;
  file.Add("layer_0_key", DType::kF16, {2, 3, 8, 64});
  file.Add("layer_0_value", DType::kF32, {2, 3, 8, 64});
  file.Add("state", DType::kF32, {1000});
  const FileSample sample = file.Sample();
  SweepResult result;
  result.input = "c";
  result.bytes_per_token = *BytesPerToken(file.header);
  EXPECT_EQ(result.bytes_per_token, 3 * 64 * (2 + 4));
  result.links = {{"1GB/s", 1e9}, {"8Tb/s", 1e12}};
  result.context_tokens = 1000;
  result.threads = 2;
  SpecFigures half = {.spec = "int8(group=64)", .tensors = std::vector<TensorFigures>(3)};
  half.compressed_bytes = sample.bytes / 2;
  half.encode_seconds = static_cast<double>(sample.bytes) / 2e9;
  half.decode_seconds = static_cast<double>(sample.bytes) / 4e9;
  SpecFigures more = half;
  more.spec = "raw";
  more.compressed_bytes = sample.bytes + 1;
  result.specs = {half, more};
  const SweepReport report = MakeSweepReport(sample, result);
  const Json json = Json::parse(report.json);
  EXPECT_EQ(json["threads"], 2);
  EXPECT_EQ(json["context_tokens"], 1000);
  EXPECT_EQ(json["chunk_tokens"], 256);
  const double chunk = 256 * result.bytes_per_token;
  const double context = 1000 * result.bytes_per_token;
  EXPECT_DOUBLE_EQ(json["links"][0]["uncompressed_chunk_seconds"], chunk / 1e9);
  EXPECT_DOUBLE_EQ(json["links"][1]["uncompressed_context_seconds"], context / 1e12);
  const Json& below = json["specs"][0]["pays_below_bytes_per_second"];
  EXPECT_DOUBLE_EQ(below["store"]["serial"], 1e9);
  EXPECT_DOUBLE_EQ(below["store"]["pipelined"], 2e9);
  EXPECT_DOUBLE_EQ(below["load"]["serial"], 2e9);
  EXPECT_NEAR(below["both"]["serial"], 4e9 / 3, 1);
  const Json& link = json["specs"][0]["links"][0];
  EXPECT_DOUBLE_EQ(link["store_chunk_seconds"]["serial"], chunk / 2e9 + chunk / 2e9);
  EXPECT_DOUBLE_EQ(link["load_chunk_seconds"]["pipelined"], chunk / 2e9);
  EXPECT_DOUBLE_EQ(link["saved_first_token_seconds"]["serial"], context / 1e9 - context / 2e9 - context / 4e9);
  EXPECT_LT(json["specs"][0]["links"][1]["saved_first_token_seconds"]["pipelined"], 0);
  EXPECT_EQ(json["specs"][1]["pays_below_bytes_per_second"]["both"]["serial"], 0);
  EXPECT_THAT(report.table, HasSubstr("2 threads, memcpy 0.00 GB/s"));
  EXPECT_THAT(report.table, HasSubstr("A token has 1152 bytes, a chunk 256 tokens."));
  EXPECT_THAT(report.table, HasSubstr("1GB/s (1 GB/s), milliseconds: 1000 tokens take 1.15 uncompressed\n"));
  EXPECT_THAT(report.table, ::testing::ContainsRegex("\n +2\\.00 .* 2\\.00 +4\\.00 +1\\.00 +2\\.00 +1\\.33  int8\n"));
  EXPECT_THAT(report.table, ::testing::ContainsRegex("never +never +never  raw\n"));
  EXPECT_THAT(report.table, ::testing::ContainsRegex("\n +0\\.29 +0\\.15 +0\\.22 +0\\.15 +0\\.29 +0\\.58  int8\n"));
}

TEST(SweepReport, WithoutTokensThereAreNoBytesOfOne) {
  TestFile file;
  file.Add("layer_0_key", DType::kF16, {8, 64});
  EXPECT_THAT(BytesPerToken(file.header).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-bandwidth counts the bytes of a token")));
  file.Add("layer_1_key", DType::kF16, {0, 2, 8, 64});
  EXPECT_THAT(BytesPerToken(file.header).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("of rank 4 with a token in it")));
}

TEST(SweepReport, HostileNamesStayText) {
  TestFile file;
  const std::string hostile = "</script><script>alert(1)</script><!--&amp;\xe2\x80\xa8";
  file.Add(hostile, DType::kF16, {64});
  const FileSample sample = file.Sample();
  FileRotary rotary({}, std::nullopt, std::nullopt);
  Sweep sweep(sample, file.header, rotary, {});
  SweepResult result;
  result.input = hostile;
  result.specs.push_back(*sweep.Measure("raw"));
  const std::string html = MakeSweepReport(sample, result).html;
  EXPECT_THAT(html, Not(HasSubstr("alert(1)</script>")));
  EXPECT_THAT(html, Not(HasSubstr("<!--")));
  const size_t begin = html.find("id=\"data\">") + 10;
  const Json json = Json::parse(html.substr(begin, html.find("</script>", begin) - begin));
  EXPECT_EQ(json["tensor_list"][0]["name"], hostile);
  EXPECT_EQ(json["input"], hostile);
}

TEST(ShellWord, QuotesWhatAShellWouldRead) {
  EXPECT_EQ(ShellWord("a/b-c_1.safetensors"), "a/b-c_1.safetensors");
  EXPECT_EQ(ShellWord(""), "''");
  EXPECT_EQ(ShellWord("int4(group=64)|rans"), "'int4(group=64)|rans'");
  EXPECT_EQ(ShellWord("it's $(rm)"), R"('it'\''s $(rm)')");
  EXPECT_EQ(ShellWord("~x"), "'~x'");
}

}  // namespace
}  // namespace kvcompress
