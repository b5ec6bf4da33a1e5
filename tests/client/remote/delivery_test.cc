#include "client/remote/delivery.h"

#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr char kDifferent[] = "it gave different bytes on a retry";

std::string New(Delivery& delivery, std::string_view bytes) {
  const absl::StatusOr<ByteSpan> fresh = delivery.New(AsBytes(bytes));
  EXPECT_THAT(fresh, IsOk());
  return fresh.ok() ? std::string(AsText(*fresh)) : "";
}

TEST(DeliveryTest, ARetryRepeatsNothingWhereverItsPiecesEnd) {
  const std::string text = "0123456789";
  for (size_t lost = 0; lost <= text.size(); ++lost) {
    for (size_t piece = 1; piece <= text.size(); ++piece) {
      Delivery delivery;
      delivery.BeginAttempt();
      std::string seen = New(delivery, text.substr(0, lost));
      EXPECT_EQ(seen, text.substr(0, lost));
      delivery.BeginAttempt();
      for (size_t at = 0; at < text.size(); at += piece) seen += New(delivery, text.substr(at, piece));
      EXPECT_EQ(seen, text) << lost << ", " << piece;
      EXPECT_THAT(delivery.EndJob(), IsOk());
      EXPECT_EQ(delivery.jobs_done(), 1u);
    }
  }
}

TEST(DeliveryTest, ARetryThatIsCutShorterStillComparesWithAllThatCameBefore) {
  Delivery delivery;
  New(delivery, "0123456789");
  delivery.BeginAttempt();
  EXPECT_EQ(New(delivery, "012"), "");
  delivery.BeginAttempt();
  EXPECT_EQ(New(delivery, "0123456789a"), "a");
  delivery.BeginAttempt();
  EXPECT_THAT(delivery.New(AsBytes("0123456789b")), StatusIs(absl::StatusCode::kInternal, kDifferent));
}

TEST(DeliveryTest, DifferentBytesAreRefused) {
  Delivery delivery;
  New(delivery, "0123");
  delivery.BeginAttempt();
  EXPECT_EQ(New(delivery, "01"), "");
  EXPECT_THAT(delivery.New(AsBytes("x3")), StatusIs(absl::StatusCode::kInternal, kDifferent));
}

TEST(DeliveryTest, FewerBytesAreRefused) {
  Delivery delivery;
  New(delivery, "0123");
  delivery.BeginAttempt();
  EXPECT_EQ(New(delivery, "012"), "");
  EXPECT_THAT(delivery.EndJob(), StatusIs(absl::StatusCode::kInternal, kDifferent));
}

TEST(DeliveryTest, ATensorIsToldOnceAndStaysTheSame) {
  Delivery delivery;
  EXPECT_TRUE(*delivery.IsNew(MakeTensor("t", DType::kF16, {2})));
  delivery.BeginAttempt();
  EXPECT_FALSE(*delivery.IsNew(MakeTensor("t", DType::kF16, {2})));
  EXPECT_THAT(delivery.IsNew(MakeTensor("t", DType::kF16, {3})), StatusIs(absl::StatusCode::kInternal, kDifferent));
  EXPECT_THAT(delivery.EndJob(), IsOk());
  EXPECT_TRUE(*delivery.IsNew(MakeTensor("u", DType::kF16, {3})));
}

}  // namespace
}  // namespace kvcompress
