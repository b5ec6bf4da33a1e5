#include "proto/wire/grpc/error_details.h"

#include <gtest/gtest.h>

#include <string_view>

namespace kvcompress {
namespace {

using std::string_view_literals::operator""sv;

grpc::Status WithDetails(std::string_view details) {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "full", std::string(details)};
}

grpc::Status WithDelay(absl::Duration delay) { return MakeStatus(grpc::UNAVAILABLE, "later", {.retry_delay = delay}); }

TEST(ErrorDetailsTest, ADelayThereAndBack) {
  for (const absl::Duration delay :
       {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(100), absl::Milliseconds(61250)}) {
    const grpc::Status status = WithDelay(delay);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(status.error_message(), "later");
    EXPECT_EQ(DetailsOf(status).retry_delay, delay);
    EXPECT_EQ(DetailsOf(status).reason, v1::ERROR_REASON_UNSPECIFIED);
  }
}

TEST(ErrorDetailsTest, AReasonThereAndBack) {
  for (const v1::ErrorReason reason : {v1::SHARED_MEMORY_LOST, v1::OUTPUT_BUFFERS_TOO_SMALL}) {
    const grpc::Status status = MakeStatus(grpc::NOT_FOUND, "gone", {.reason = reason});
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(status.error_message(), "gone");
    EXPECT_EQ(DetailsOf(status).reason, reason);
    EXPECT_EQ(DetailsOf(status).retry_delay, std::nullopt);
  }
  const ErrorDetails both =
      DetailsOf(MakeStatus(grpc::UNAVAILABLE, "", {.retry_delay = absl::Seconds(1), .reason = v1::SHARED_MEMORY_LOST}));
  EXPECT_EQ(both.retry_delay, absl::Seconds(1));
  EXPECT_EQ(both.reason, v1::SHARED_MEMORY_LOST);
  EXPECT_EQ(MakeStatus(grpc::INTERNAL, "oh", {}).error_details(), "");
}

// The bytes that google.rpc.Status{code: 8, message: "full", details: [RetryInfo{retry_delay: 1.5 s}]} has.
TEST(ErrorDetailsTest, TheBytesAreThoseOfGoogleRpc) {
  constexpr auto kBytes =
      "\x08\x08\x12\x04"
      "full\x1a\x36\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01"sv;
  const grpc::Status full =
      MakeStatus(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", {.retry_delay = absl::Milliseconds(1500)});
  EXPECT_EQ(full.error_details(), kBytes);
  EXPECT_EQ(DetailsOf(WithDetails(kBytes)).retry_delay, absl::Milliseconds(1500));
}

TEST(ErrorDetailsTest, DetailsOfOthersAreLookedThrough) {
  const std::string retry = WithDelay(absl::Seconds(2)).error_details();
  EXPECT_EQ(DetailsOf(WithDetails("\x1a\x03\x0a\x01x" + retry)).retry_delay, absl::Seconds(2));
}

TEST(ErrorDetailsTest, WhatMakesNoSenseIsNoDelay) {
  EXPECT_EQ(DetailsOf(grpc::Status::OK).retry_delay, std::nullopt);
  EXPECT_EQ(DetailsOf(WithDetails("\x08\x08"sv)).retry_delay, std::nullopt);
  EXPECT_EQ(DetailsOf(WithDetails("not protobuf")).retry_delay, std::nullopt);
  for (const absl::Duration delay : {absl::Seconds(-1), absl::Nanoseconds(-1)}) {
    EXPECT_EQ(DetailsOf(WithDelay(delay)).retry_delay, std::nullopt) << delay;
  }
}

TEST(ErrorDetailsTest, ReasonsThatAreUnknownOrOfOthersAreNone) {
  const std::string lost = MakeStatus(grpc::NOT_FOUND, "", {.reason = v1::SHARED_MEMORY_LOST}).error_details();
  ASSERT_EQ(DetailsOf(WithDetails(lost)).reason, v1::SHARED_MEMORY_LOST);
  for (const std::string_view part : {"SHARED", "kvcompress", "google.rpc.ErrorInfo"}) {
    std::string other = lost;
    other[other.find(part)] = 'x';
    EXPECT_EQ(DetailsOf(WithDetails(other)).reason, v1::ERROR_REASON_UNSPECIFIED) << part;
  }
}

}  // namespace
}  // namespace kvcompress
