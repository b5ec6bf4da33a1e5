#include "proto/wire/grpc/error_details.h"

#include <gtest/gtest.h>

#include <string_view>

namespace kvcompress {
namespace {

using std::string_view_literals::operator""sv;

grpc::Status WithDetails(std::string_view details) {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "full", std::string(details)};
}

TEST(ErrorDetailsTest, ADelayThereAndBack) {
  for (const absl::Duration delay :
       {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(100), absl::Milliseconds(61250)}) {
    const grpc::Status status = RetryableStatus(grpc::StatusCode::UNAVAILABLE, "later", delay);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(status.error_message(), "later");
    EXPECT_EQ(RetryDelay(status), delay);
  }
}

// The bytes that google.rpc.Status{code: 8, message: "full", details: [RetryInfo{retry_delay: 1.5 s}]} has.
TEST(ErrorDetailsTest, TheBytesAreThoseOfGoogleRpc) {
  constexpr auto kBytes =
      "\x08\x08\x12\x04"
      "full\x1a\x36\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01"sv;
  EXPECT_EQ(RetryableStatus(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", absl::Milliseconds(1500)).error_details(),
            kBytes);
  EXPECT_EQ(RetryDelay(WithDetails(kBytes)), absl::Milliseconds(1500));
}

TEST(ErrorDetailsTest, DetailsOfOthersAreLookedThrough) {
  const std::string retry =
      RetryableStatus(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", absl::Seconds(2)).error_details();
  EXPECT_EQ(RetryDelay(WithDetails("\x1a\x03\x0a\x01x" + retry)), absl::Seconds(2));
}

TEST(ErrorDetailsTest, WhatMakesNoSenseIsNoDelay) {
  EXPECT_EQ(RetryDelay(grpc::Status::OK), std::nullopt);
  EXPECT_EQ(RetryDelay(WithDetails("\x08\x08"sv)), std::nullopt);
  EXPECT_EQ(RetryDelay(WithDetails("not protobuf")), std::nullopt);
  for (const absl::Duration delay : {absl::Seconds(-1), absl::Nanoseconds(-1)}) {
    EXPECT_EQ(RetryDelay(RetryableStatus(grpc::StatusCode::UNAVAILABLE, "", delay)), std::nullopt) << delay;
  }
}

}  // namespace
}  // namespace kvcompress
