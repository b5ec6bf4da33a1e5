#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/session/session.h"
#include "tests/server/session/session_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// Sessions whose input is pieces of a region: a page in which keys and values alternate.
namespace kvcompress {
namespace {

using testing::Data;
using testing::Distribution;
using testing::FakeRegion;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::kBlock;
using testing::MakeValues;
using testing::StatusIs;

constexpr uint64_t kRow = 256;  // bytes of one token's key, and of its value
constexpr uint64_t kTokens = 6'000;
constexpr uint64_t kSide = kTokens * kRow;

class StridedInputTest : public ::testing::Test {
 protected:
  StridedInputTest() {
    for (uint64_t token = 0; token < kTokens; ++token) {
      std::byte* const page = region_->storage.data() + 2 * token * kRow;
      std::memcpy(page, keys_.data() + token * kRow, kRow);
      std::memcpy(page + kRow, values_.data() + token * kRow, kRow);
    }
  }

  static v1::CompressRequest Header(const std::string& codec) {
    v1::CompressRequest request;
    v1::Tensor& tensor = *request.mutable_header()->mutable_tensor();
    tensor.set_name("t");
    tensor.set_dtype(v1::DTYPE_F16);
    tensor.add_shape(kSide / 2);
    request.mutable_header()->set_codec(codec);
    return request;
  }

  v1::CompressRequest Pieces(uint64_t offset, uint64_t size, std::initializer_list<StridedBytes::Level> levels) const {
    v1::CompressRequest request;
    v1::SharedMemoryRange& range = *request.mutable_shared_data();
    range.set_region(id_);
    range.set_offset(offset);
    range.set_byte_size(size);
    for (const auto& [count, stride] : levels) {
      v1::SharedMemoryLevel& level = *range.add_levels();
      level.set_count(count);
      level.set_stride(stride);
    }
    return request;
  }

  absl::Status Compress(const std::vector<v1::CompressRequest>& requests, uint64_t window = DefaultWindowBytes(2)) {
    testing::Driver<CompressSession> driver(pool_, admission_,
                                            {.limits = {}, .window_bytes = window, .regions = &table_});
    const absl::Status status = driver.Run(requests);
    frame_.clear();
    released_ = copied_ = 0;
    for (const auto& response : driver.responses) {
      frame_ += response.frame();
      released_ = std::max<uint64_t>(released_, response.input_released());
      if (response.has_tensor()) copied_ = response.tensor().copied_bytes();
    }
    return status;
  }

  std::string Expected(const std::string& codec, ByteSpan values) {
    EXPECT_THAT(Compress({Header(codec), Data(values)}), IsOk());
    return std::move(frame_);
  }

  const std::vector<std::byte> keys_ = MakeValues(DType::kF16, kSide / 2, Distribution::kGaussian);
  const std::vector<std::byte> values_ = MakeValues(DType::kF16, kSide / 2, Distribution::kOutliers);
  const std::shared_ptr<FakeRegion> region_ = std::make_shared<FakeRegion>(2 * kSide);
  ThreadPool pool_{2};
  Admission admission_{{.memory_budget = uint64_t{1} << 30, .max_streams = 8}};
  RegionTable table_;
  const uint64_t id_ = table_.Add(region_);
  std::string frame_;
  uint64_t released_ = 0;
  uint64_t copied_ = 0;
};

TEST_F(StridedInputTest, FramesAreThoseOfTheSameValuesInOnePiece) {
  region_->writable = false;
  for (const char* codec : {"int4(group=64)", "raw", "lossless", "sparse(ratio=0.5)|int4"}) {
    SCOPED_TRACE(codec);
    for (const uint64_t window : {DefaultWindowBytes(2), uint64_t{kBlock}}) {
      const std::string keys = Expected(codec, keys_);
      ASSERT_THAT(Compress({Header(codec), Pieces(0, kSide, {{kTokens, 2 * kRow}})}, window), IsOk());
      EXPECT_EQ(frame_, keys);
      EXPECT_EQ(released_, kSide);
      const std::string values = Expected(codec, values_);
      ASSERT_THAT(Compress({Header(codec), Pieces(kRow, kSide, {{kTokens / 2, 4 * kRow}, {2, 2 * kRow}})}, window),
                  IsOk());
      EXPECT_EQ(frame_, values);
    }
  }
}

TEST_F(StridedInputTest, BlocksAreGatheredOnce) {
  ASSERT_THAT(Compress({Header("raw"), Pieces(0, kSide, {{kTokens, 2 * kRow}})}), IsOk());
  EXPECT_EQ(copied_, 0u) << "copies after the first";
}

TEST_F(StridedInputTest, SeveralRangesAndBytesMix) {
  const std::string expected = Expected("int4", keys_);
  const uint64_t some = 7 * kRow;
  ASSERT_THAT(Compress({Header("int4"), Pieces(0, some, {{7, 2 * kRow}}), Data(ByteSpan(keys_).subspan(some, kRow + 1)),
                        Pieces(16 * kRow + 1, kRow - 1, {{1, 0}}),
                        Pieces(18 * kRow, kSide - 9 * kRow, {{kTokens - 9, 2 * kRow}})}),
              IsOk());
  EXPECT_EQ(frame_, expected);
  EXPECT_EQ(released_, kSide - kRow - 1);
}

TEST_F(StridedInputTest, MoreThanTheTensorIsRefused) {
  EXPECT_THAT(Compress({Header("int4"), Pieces(0, kSide, {{kTokens, 2 * kRow}}), Pieces(0, 2, {{2, 1}})}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data behind the tensor's last byte")));
  EXPECT_THAT(Compress({Header("int4"), Pieces(0, UINT64_MAX / kRow * kRow, {{UINT64_MAX / kRow, 0}})}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than the 1536000 bytes")));
  EXPECT_THAT(Compress({Pieces(0, 2, {{2, 1}})}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("before the tensor's header")));
}

TEST_F(StridedInputTest, PiecesPastTheRegionAreRefused) {
  EXPECT_THAT(Compress({Header("int4"), Pieces(kRow + 1, kSide, {{kTokens, 2 * kRow}})}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ends behind its region")));
  EXPECT_THAT(Compress({Header("int4"), Pieces(0, kSide, {{kTokens, UINT64_MAX}})}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ends behind its region")));
}

TEST_F(StridedInputTest, OutputIsInOnePiece) {
  v1::CompressRequest header = Header("int4");
  header.mutable_header()->set_frame_to_buffer(true);
  v1::CompressRequest buffer;
  *buffer.mutable_frame_buffer() = Pieces(0, 1000, {{10, 200}}).shared_data();
  EXPECT_THAT(Compress({header, buffer}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a buffer for output that is in pieces")));
}

TEST_F(StridedInputTest, NothingOfARegionThatLostMemoryIsReported) {
  region_->is_intact = false;
  EXPECT_THAT(Compress({Header("int4"), Pieces(0, kSide, {{kTokens, 2 * kRow}})}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("has lost memory")));
  EXPECT_EQ(frame_, "");
}

}  // namespace
}  // namespace kvcompress
