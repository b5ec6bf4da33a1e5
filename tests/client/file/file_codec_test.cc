#include "client/file/file_codec.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"
#include "client/local_client.h"
#include "core/codec/registry.h"
#include "core/file/compressed_file.h"
#include "core/quality/quality.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

namespace fs = std::filesystem;

using Bytes = std::vector<std::byte>;
using Metadata = std::map<std::string, std::string>;

struct PlainTensor {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  Bytes values;
};

std::string MakePlainFile(const std::vector<PlainTensor>& tensors, const std::optional<Metadata>& metadata) {
  std::vector<safetensors::Entry> entries;
  std::string data;
  for (const PlainTensor& tensor : tensors) {
    const uint64_t begin = data.size();
    data += AsText(tensor.values);
    entries.push_back({tensor.name, tensor.dtype, tensor.shape, begin, data.size()});
  }
  return *SerializeHeader(entries, metadata.value_or(Metadata()), metadata.has_value()) + data;
}

PlainTensor MakePlainTensor(std::string name, DType dtype, std::vector<uint64_t> shape, uint32_t seed = 1) {
  const uint64_t elements = *NumElements(shape);
  return {std::move(name), std::string(DTypeName(dtype)), std::move(shape),
          MakeValues(dtype, elements, Distribution::kGaussian, seed)};
}

class FileCodecTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / absl::StrFormat("kvc_%s_%d", test->name(), getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string Path(std::string_view name) const { return (folder_ / name).native(); }

  void Write(const std::string& path, const std::string& bytes) {
    fs::remove(path);  // some file systems sync a file that is truncated and written again
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::vector<std::string> Files() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().native());
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::StatusOr<FileReport> Compress(const std::string& input, const std::string& output, std::string_view codec,
                                      const FileOptions& options = {}) {
    return CompressFile(*client_, input, output, *Profile::Uniform(codec), codec, options);
  }

  absl::StatusOr<FileReport> Decompress(const std::string& input, const std::string& output,
                                        const FileOptions& options = {}) {
    return DecompressFile(*client_, input, output, options);
  }

  // What a file of these tensors becomes by compression without loss and decompression.
  std::string RoundTrip(const std::string& plain, std::string_view codec = "raw") {
    Write(Path("in"), plain);
    EXPECT_THAT(Compress(Path("in"), Path("packed"), codec), IsOk());
    EXPECT_THAT(Decompress(Path("packed"), Path("out")), IsOk());
    return Read(Path("out"));
  }

  fs::path folder_;
  std::unique_ptr<CodecClient> client_ = MakeLocalClient(2);
};

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
  EXPECT_THAT(fault(MakePlainFile({{"ids", "I64", {2}, Bytes(16)}}, std::nullopt)),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "unsupported data type: I64 (tensor \"ids\"; use F16, BF16 or F32)"));
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

class DamagedFileTest : public FileCodecTest {
 protected:
  // A small compressed file with all that one can hold, and padding in its header.
  std::string MakeCompressed() {
    Write(Path("in"), MakePlainFile({MakePlainTensor("layer_0_key", DType::kF16, {1, 1, 3, 16}),
                                     MakePlainTensor("empty", DType::kF32, {0})},
                                    Metadata{{"format", "pt"}}));
    EXPECT_THAT(Compress(Path("in"), Path("packed"), "int4(group=32)|zstd(level=1)"), IsOk());
    return Read(Path("packed"));
  }

  absl::Status FaultOf(const std::string& bytes) {
    Write(Path("damaged"), bytes);
    return Decompress(Path("damaged"), "").status();
  }

  static bool IsRefusal(const absl::Status& status) {
    return absl::IsInvalidArgument(status) || absl::IsDataLoss(status) || absl::IsUnimplemented(status) ||
           absl::IsResourceExhausted(status);
  }
};

TEST_F(DamagedFileTest, EveryFlippedBitIsRefused) {
  const std::string good = MakeCompressed();
  ASSERT_THAT(FaultOf(good), IsOk());
  ASSERT_THAT(good, HasSubstr("} "));  // padding is there to be damaged
  for (size_t i = 0; i < good.size() * 8; ++i) {
    std::string bad = good;
    bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << (i % 8)));
    const absl::Status status = FaultOf(bad);
    ASSERT_TRUE(IsRefusal(status)) << "bit " << i % 8 << " of byte " << i / 8 << ": " << status;
  }
}

TEST_F(DamagedFileTest, EveryTruncationAndAnyTailIsRefused) {
  const std::string good = MakeCompressed();
  for (size_t size = 0; size < good.size(); ++size) {
    const absl::Status status = FaultOf(good.substr(0, size));
    ASSERT_TRUE(IsRefusal(status)) << size << " bytes: " << status;
  }
  EXPECT_THAT(FaultOf(good + '\0'), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("parse header: ")));
}

TEST_F(DamagedFileTest, OtherBlanksInTheHeaderAreRefused) {
  std::string bad = MakeCompressed();
  bad[bad.find("} ") + 1] = '\t';
  EXPECT_THAT(FaultOf(bad), StatusIs(absl::StatusCode::kDataLoss,
                                     "compressed file is damaged: its header does not match the header's checksum"));
}

TEST_F(DamagedFileTest, ANewerVersionIsNamed) {
  std::string bad = MakeCompressed();
  const std::string version = "\"kvcompress.version\":\"1\"";
  bad.replace(bad.find(version), version.size(), "\"kvcompress.version\":\"7\"");
  EXPECT_THAT(FaultOf(bad), StatusIs(absl::StatusCode::kUnimplemented,
                                     "compressed file has version \"7\", and this program reads version 1"));
}

// A file whose header is right, checksum included, around entries that are not frames of their sizes.
TEST_F(DamagedFileTest, EntriesThatAreNotExactlyAFrame) {
  Write(Path("in"), MakePlainFile({MakePlainTensor("a", DType::kF16, {64})}, std::nullopt));
  ASSERT_THAT(Compress(Path("in"), Path("packed"), "raw"), IsOk());
  const auto header = safetensors::ReadHeader(**FileSource::Open(Path("packed")));
  const std::string frame = Read(Path("packed")).substr(header->data_start);
  const auto fault = [&](const std::string& entry, const std::string& dtype, std::vector<uint64_t> shape) {
    const auto bytes =
        SerializeCompressedHeader({{"a", dtype, std::move(shape), 0, entry.size()}}, {}, false, "raw", 0);
    return FaultOf(*bytes + entry);
  };
  const uint64_t size = frame.size();
  ASSERT_THAT(fault(frame, "U8", {size}), IsOk());
  EXPECT_THAT(
      fault(frame, "U8", {1, size}),
      StatusIs(absl::StatusCode::kInvalidArgument, "tensor \"a\": entry is U8 of rank 2, but frames are U8 of rank 1"));
  EXPECT_THAT(fault(frame, "I8", {size}), StatusIs(absl::StatusCode::kInvalidArgument,
                                                   "tensor \"a\": entry is I8 of rank 1, but frames are U8 of rank 1"));
  EXPECT_THAT(fault(frame + "abc", "U8", {size + 3}),
              StatusIs(absl::StatusCode::kInvalidArgument, "tensor \"a\": 3 bytes behind the frame's end mark"));
  EXPECT_THAT(fault(frame.substr(0, size - 1), "U8", {size - 1}),
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("tensor \"a\": ")));
  EXPECT_THAT(fault(frame.substr(0, 20), "U8", {20}),
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("tensor \"a\": ")));
  EXPECT_THAT(fault("", "U8", {0}), StatusIs(absl::StatusCode::kDataLoss, StartsWith("tensor \"a\": ")));
}

}  // namespace
}  // namespace kvcompress
