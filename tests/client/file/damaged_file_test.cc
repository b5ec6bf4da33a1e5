#include <gmock/gmock.h>

#include "absl/strings/str_format.h"
#include "core/file/compressed_file.h"
#include "tests/client/file/file_harness.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;
using ::testing::StartsWith;

class DamagedFileTest : public FileTest {
 protected:
  // A small compressed file with metadata, an empty tensor, and padding in its header.
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
              StatusIs(absl::StatusCode::kInvalidArgument,
                       absl::StrFormat("tensor \"a\": the frame ends after %d of %d bytes", size, size + 3)));
  EXPECT_THAT(fault(frame.substr(0, size - 1), "U8", {size - 1}),
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("tensor \"a\": ")));
  EXPECT_THAT(fault(frame.substr(0, 20), "U8", {20}),
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("tensor \"a\": ")));
  EXPECT_THAT(fault("", "U8", {0}), StatusIs(absl::StatusCode::kDataLoss, StartsWith("tensor \"a\": ")));
}

}  // namespace
}  // namespace kvcompress
