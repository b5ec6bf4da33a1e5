#include "client/file/file_codec.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>

#include "core/codec/registry.h"
#include "core/file/compressed_file.h"
#include "core/quality/quality.h"
#include "tests/client/file/file_harness.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using FileCodecTest = FileTest;

TEST_F(FileCodecTest, LosslessFilesComeBackByteForByte) {
  const std::vector<PlainTensor> tensors = {
      MakePlainTensor("layer_0_key", DType::kF16, {1, 2, 100, 64}, 1),
      MakePlainTensor("layer_0_value", DType::kBF16, {1, 2, 100, 64}, 2),
      MakePlainTensor("none", DType::kF32, {3, 0, 2}),
      MakePlainTensor("scalar", DType::kF32, {}),
      MakePlainTensor("odd name \"\\\n\t/\xc3\xa9", DType::kF32, {7}),
      MakePlainTensor("blocks", DType::kF16, {3, 100000}),
      {"bits", "F16", {1000}, MakeBits(2000)},
      {"empty at the end", "BF16", {0}, {}},
  };
  const std::vector<std::optional<Metadata>> metadatas = {
      std::nullopt, Metadata(), Metadata{{"format", "pt"}, {"", "empty key"}, {"q", "\"\n\xc3\xa9"}}};
  for (const std::optional<Metadata>& metadata : metadatas) {
    const std::string plain = MakePlainFile(tensors, metadata);
    EXPECT_EQ(RoundTrip(plain, "raw"), plain);
    EXPECT_EQ(RoundTrip(plain, "raw|zstd(level=1)"), plain);
  }
}

TEST_F(FileCodecTest, FilesWithoutTensorsComeBack) {
  for (const std::optional<Metadata>& metadata :
       std::vector<std::optional<Metadata>>{std::nullopt, Metadata(), Metadata{{"a", "b"}}}) {
    const std::string plain = MakePlainFile({}, metadata);
    EXPECT_EQ(RoundTrip(plain), plain);
  }
}

TEST_F(FileCodecTest, EveryCodecGivesTheSameBytesOnAnyNumberOfThreads) {
  const std::string plain = MakePlainFile({MakePlainTensor("layer_0_key", DType::kF16, {1, 3, 1000, 64}),
                                           MakePlainTensor("layer_0_value", DType::kF32, {1, 3, 1000, 64})},
                                          std::nullopt);
  Write(Path("in"), plain);
  for (const CodecRow* row : AllCodecs()) {
    for (std::string_view codec : row->examples) {
      ASSERT_THAT(Compress(Path("in"), Path("two"), codec), IsOk()) << codec;
      client_ = MakeLocalClient(1);
      ASSERT_THAT(Compress(Path("in"), Path("one"), codec), IsOk()) << codec;
      client_ = MakeLocalClient(2);
      EXPECT_EQ(Read(Path("one")), Read(Path("two"))) << codec;
      const auto report = Decompress(Path("two"), Path("out"));
      ASSERT_THAT(report, IsOk()) << codec;
      EXPECT_EQ(report->tensor_bytes, 3000u * 64 * 6);
      EXPECT_EQ(Read(Path("out")).size(), plain.size());
    }
  }
}

TEST_F(FileCodecTest, TheReportTellsTheSizesThatWereWritten) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {1000}), MakePlainTensor("b", DType::kF32, {500})},
                                  std::nullopt));
  std::vector<uint64_t> done;
  FileOptions options;
  options.progress = [&](uint64_t bytes, uint64_t total) {
    EXPECT_EQ(total, 4000u);
    done.push_back(bytes);
  };
  const auto report = Compress(Path("in"), Path("packed"), "int4(group=32)|zstd(level=1)", options);
  ASSERT_THAT(report, IsOk());
  EXPECT_EQ(report->tensor_bytes, 4000u);
  EXPECT_EQ(report->compressed_bytes, fs::file_size(Path("packed")));
  EXPECT_EQ(report->codec, "int4(group=32)|zstd(level=1)");
  ASSERT_EQ(report->tensors.size(), 2u);
  EXPECT_EQ(report->tensors[0].tensor.name, "a");
  EXPECT_GT(QualityOf(report->tensors[1].sums).rmse, 0);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_THAT(done, AllOf(Contains(2000u), ::testing::Each(::testing::Le(4000u))));
  EXPECT_EQ(done.back(), 4000u);

  const auto dry = Compress(Path("in"), "", "int4(group=32)|zstd(level=1)");
  ASSERT_THAT(dry, IsOk());
  EXPECT_EQ(dry->compressed_bytes, report->compressed_bytes);

  const auto back = Decompress(Path("packed"), Path("out"));
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(back->tensor_bytes, 4000u);
  EXPECT_EQ(back->compressed_bytes, report->compressed_bytes);
  EXPECT_EQ(back->codec, report->codec);
}

TEST_F(FileCodecTest, ProfilesChooseTheCodecOfEachTensor) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("layer_0_key", DType::kF16, {1, 1, 64, 64}),
                                   MakePlainTensor("layer_1_key", DType::kF16, {1, 1, 64, 64})},
                                  std::nullopt));
  const auto profile = Profile::Parse(
      R"json({"version": 1, "default": "int8(group=64)", "rules": [{"layers": [0, 0], "codec": "raw"}]})json");
  ASSERT_THAT(profile, IsOk());
  const auto report = CompressFile(*client_, Path("in"), Path("packed"), *profile, "profile", {});
  ASSERT_THAT(report, IsOk());
  EXPECT_EQ(report->tensors[0].codec, "raw");
  EXPECT_EQ(report->tensors[1].codec, "int8(group=64)");
  EXPECT_EQ(Decompress(Path("packed"), Path("out"))->codec, "profile");
}

TEST_F(FileCodecTest, CodecsOfBlocksAreCountedWhereTheyAreChosen) {
  // Three blocks: noise, noise with a NaN, zeros.
  const size_t block = kDefaultBlockElements;
  auto values = MakeValues(DType::kF16, 3 * block, Distribution::kGaussian);
  StoreFromF32(DType::kF16, std::numeric_limits<float>::quiet_NaN(), values.data(), block + 7);
  std::fill(values.begin() + static_cast<ptrdiff_t>(2 * block * 2), values.end(), std::byte{0});
  FileOptions options;
  options.count_block_codecs = true;
  Write(Path("in"),
        MakePlainFile({{"a", "F16", {3 * block}, values}, MakePlainTensor("b", DType::kF32, {0})}, std::nullopt));
  for (const std::string_view codec : {"bounded(min_snr=18)", "bounded(min_snr=18)|zstd(level=1)"}) {
    const auto report = Compress(Path("in"), Path("packed"), codec, options);
    ASSERT_THAT(report, IsOk());
    const BlockCodecs expected = {{"int2(group=32)", 1}, {"int4(group=128)", 1}, {"planes(split=auto,delta=auto)", 1}};
    EXPECT_THAT(report->block_codecs, ElementsAre(expected, BlockCodecs{}));
  }
  EXPECT_THAT(Compress(Path("in"), Path("packed"), "raw", options)->block_codecs,
              ElementsAre(BlockCodecs{}, BlockCodecs{}));
}

TEST_F(FileCodecTest, ACompressedFileIsSafetensorsWithOneFrameATensor) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {4, 32})}, Metadata{{"format", "pt"}}));
  ASSERT_THAT(Compress(Path("in"), Path("packed"), "int4(group=32)"), IsOk());
  const auto file = FileSource::Open(Path("packed"));
  const auto header = safetensors::ReadHeader(**file);
  ASSERT_THAT(header, IsOk());
  ASSERT_EQ(header->entries.size(), 1u);
  EXPECT_EQ(header->entries[0].name, "a");
  EXPECT_EQ(header->entries[0].dtype, "U8");
  EXPECT_THAT(header->entries[0].shape, ElementsAre(header->entries[0].bytes()));
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->metadata.at("kvcompress.version"), "1");
  EXPECT_EQ(header->metadata.at("kvcompress.codec"), "int4(group=32)");
  EXPECT_EQ(header->metadata.at("kvcompress.had_metadata"), "1");
  EXPECT_EQ(header->metadata.at("kvcompress.header_xxh3").size(), 16u);
  const auto compressed = ReadCompressedFile(**file, *header);
  ASSERT_THAT(compressed, IsOk());
  EXPECT_EQ(compressed->tensors[0].frame.codec, "int4(group=32)");
  EXPECT_EQ(compressed->tensors[0].frame.tensor, MakeTensor("a", DType::kF16, {4, 32}));
}

TEST_F(FileCodecTest, FramesOfAnotherFingerprintLeaveTheOldOutput) {
  const std::string plain = MakePlainFile(
      {MakePlainTensor("a", DType::kF16, {4, 32}), MakePlainTensor("b", DType::kF32, {300000})}, std::nullopt);
  Write(Path("in"), plain);
  ASSERT_THAT(Compress(Path("in"), Path("packed"), "raw", {.fingerprint = "one"}), IsOk());
  ASSERT_THAT(Compress(Path("in"), Path("none"), "raw"), IsOk());
  for (const char* expected : {"", "one"}) {
    const auto report = Decompress(Path("packed"), Path("out"), {.fingerprint = expected});
    ASSERT_THAT(report, IsOk());
    EXPECT_EQ(report->tensors[1].tensor.fingerprint, "one");
    EXPECT_EQ(Read(Path("out")), plain);
  }
  Write(Path("out"), "old");
  for (const char* packed : {"packed", "none"}) {
    EXPECT_THAT(Decompress(Path(packed), Path("out"), {.fingerprint = "two"}),
                StatusIs(absl::StatusCode::kAborted,
                         AllOf(StartsWith("tensor \"a\": frame: it has "), HasSubstr("not fingerprint 74776f"))));
    EXPECT_EQ(Read(Path("out")), "old");
  }
}

TEST_F(FileCodecTest, InputAndOutputMayBeTheSamePath) {
  const std::string plain = MakePlainFile({MakePlainTensor("a", DType::kF32, {100000})}, Metadata());
  Write(Path("file"), plain);
  ASSERT_THAT(Compress(Path("file"), Path("file"), "raw"), IsOk());
  EXPECT_NE(Read(Path("file")), plain);
  ASSERT_THAT(Decompress(Path("file"), Path("file")), IsOk());
  EXPECT_EQ(Read(Path("file")), plain);
  EXPECT_THAT(Files(), ElementsAre("file"));
}

TEST_F(FileCodecTest, UnsupportedInputIsRefused) {
  const auto fault = [&](const std::string& bytes) {
    Write(Path("in"), bytes);
    return Compress(Path("in"), Path("packed"), "int4").status();
  };
  EXPECT_THAT(fault(MakePlainFile({}, Metadata{{"kvcompress.codec", "raw"}})),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "input has the metadata key \"kvcompress.codec\": keys with kvcompress. are reserved"));
  EXPECT_THAT(fault("\1\0\0\0\0\0\0\0{"), StatusIs(absl::StatusCode::kInvalidArgument, StartsWith("parse header: ")));
  EXPECT_THAT(fault(MakePlainFile({MakePlainTensor("", DType::kF16, {1})}, std::nullopt)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name")));
  EXPECT_THAT(fault(MakePlainFile({{"deep", "F16", std::vector<uint64_t>(9, 1), Bytes(2)}}, std::nullopt)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("deep")));
  EXPECT_THAT(Files(), ElementsAre("in"));

  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {64})}, std::nullopt));
  ASSERT_THAT(Compress(Path("in"), Path("packed"), "int4"), IsOk());
  EXPECT_THAT(Compress(Path("packed"), Path("twice"), "int4"),
              StatusIs(absl::StatusCode::kInvalidArgument, "input is already a compressed file: decompress it first"));
  EXPECT_THAT(Decompress(Path("in"), Path("twice")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "input is not a compressed file: its metadata has no kvcompress.version"));
  EXPECT_THAT(Files(), ElementsAre("in", "packed"));
}

TEST_F(FileCodecTest, AValueThatTheCodecCannotHoldLeavesTheOldOutput) {
  PlainTensor bad = MakePlainTensor("layer_3_key", DType::kF16, {1, 2, 1024, 128});
  StoreFromF32(DType::kF16, INFINITY, bad.values.data(), 200000);
  Write(Path("in"), MakePlainFile({MakePlainTensor("good", DType::kF16, {200000}), bad}, std::nullopt));
  Write(Path("packed"), "old");
  EXPECT_THAT(Compress(Path("in"), Path("packed"), "int4"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("\"layer_3_key\""), HasSubstr("200000"), HasSubstr("infinity"))));
  EXPECT_EQ(Read(Path("packed")), "old");
  EXPECT_THAT(Files(), ElementsAre("in", "packed"));
}

TEST_F(FileCodecTest, PathsThatCannotBeReadOrWritten) {
  EXPECT_THAT(Compress(Path("none"), Path("packed"), "int4"),
              StatusIs(absl::StatusCode::kNotFound,
                       absl::StrFormat("read input: open %s: no such file or directory", Path("none"))));
  EXPECT_THAT(Decompress(Path("none"), Path("packed")),
              StatusIs(absl::StatusCode::kNotFound,
                       absl::StrFormat("read input: open %s: no such file or directory", Path("none"))));
  EXPECT_THAT(Compress(folder_.native(), Path("packed"), "int4"),
              StatusIs(absl::StatusCode::kFailedPrecondition, StartsWith("read input: read ")));
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {64})}, std::nullopt));
  EXPECT_THAT(Compress(Path("in"), Path("no/packed"), "int4"),
              StatusIs(absl::StatusCode::kNotFound,
                       absl::StrFormat("write output: open %s: no such file or directory", Path("no/packed"))));
  EXPECT_THAT(Compress(Path("in"), folder_.native(), "int4"),
              StatusIs(absl::StatusCode::kFailedPrecondition, StartsWith("write output: open ")));
}

// A limit on the size of files stands for a disk that is full: the write fails in the middle.
TEST_F(FileCodecTest, AFullDiskLeavesTheOldOutput) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {500000})}, std::nullopt));
  ASSERT_THAT(Compress(Path("in"), Path("packed"), "int4"), IsOk());
  Write(Path("old"), "old");
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small = {100000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status compressed = Compress(Path("in"), Path("old"), "int4").status();
  const absl::Status decompressed = Decompress(Path("packed"), Path("old")).status();
  setrlimit(RLIMIT_FSIZE, &before);
  const std::string text = absl::StrFormat("write output: write %s: file too large", Path("old"));
  EXPECT_EQ(compressed.message(), text);
  EXPECT_EQ(decompressed.message(), text);
  EXPECT_EQ(Read(Path("old")), "old");
  EXPECT_THAT(Files(), ElementsAre("in", "old", "packed"));
}

TEST_F(FileCodecTest, AnInputThatIsCutUnderUsIsAnError) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {4000000})}, std::nullopt));
  FileOptions options;
  options.create = [&](const std::string& path) {
    fs::resize_file(Path("in"), 1000);
    return AtomicFile::Create(path);
  };
  EXPECT_THAT(Compress(Path("in"), Path("packed"), "int4", options),
              StatusIs(absl::StatusCode::kDataLoss,
                       absl::StrFormat("read input: read %s: the file became shorter while it was read", Path("in"))));
  EXPECT_THAT(Files(), ElementsAre("in"));
}

TEST_F(FileCodecTest, AnInputThatIsWrittenUnderUsIsAnError) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {4000000})}, std::nullopt));
  fs::last_write_time(Path("in"), fs::last_write_time(Path("in")) - std::chrono::seconds(10));
  FileOptions options;
  options.create = [&](const std::string& path) {
    std::fstream(Path("in"), std::ios::in | std::ios::out | std::ios::binary).seekp(1'000'000).put('x');
    return AtomicFile::Create(path);
  };
  EXPECT_THAT(Compress(Path("in"), Path("packed"), "int4", options),
              StatusIs(absl::StatusCode::kDataLoss,
                       absl::StrFormat("read input: read %s: the file changed while it was read", Path("in"))));
  EXPECT_THAT(Files(), ElementsAre("in"));
}

TEST_F(FileCodecTest, ADeadlineThatHasPassed) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {64})}, std::nullopt));
  ASSERT_THAT(Compress(Path("in"), Path("packed"), "int4"), IsOk());
  FileOptions options;
  options.deadline = absl::InfinitePast();
  EXPECT_THAT(Compress(Path("in"), Path("new"), "int4", options),
              StatusIs(absl::StatusCode::kDeadlineExceeded, "deadline exceeded"));
  EXPECT_THAT(Decompress(Path("packed"), Path("new"), options),
              StatusIs(absl::StatusCode::kDeadlineExceeded, "deadline exceeded"));
  EXPECT_THAT(Files(), ElementsAre("in", "packed"));
}

}  // namespace
}  // namespace kvcompress
