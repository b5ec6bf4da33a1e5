#include "server/session/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using testing::IsOk;
using testing::StatusIs;

bool HasPushback(const absl::Status& status) {
  return status.GetPayload(absl::string_view(kRetryPushbackUrl.data(), kRetryPushbackUrl.size())).has_value();
}

class AdmissionTest : public ::testing::Test {
 protected:
  std::vector<std::string> reasons_;
  Admission admission_{{.memory_budget = 1000, .max_streams = 2, .on_reject = [this](RejectReason reason) {
                          reasons_.emplace_back(RejectReasonName(reason));
                        }}};
};

TEST(AdmissionOfClientsTest, OneClientLeavesRoomForOthers) {
  std::vector<std::string> reasons;
  Admission admission({.max_streams = 4, .max_streams_per_client = 2, .on_reject = [&](RejectReason reason) {
                         reasons.emplace_back(RejectReasonName(reason));
                       }});
  Admission::Ticket first = *admission.AdmitStream("a");
  {
    Admission::Ticket second = *admission.AdmitStream("a");
    const absl::Status refused = admission.AdmitStream("a").status();
    EXPECT_THAT(refused,
                StatusIs(absl::StatusCode::kResourceExhausted, "the limit of 2 streams of one client is reached"));
    EXPECT_TRUE(HasPushback(refused));
    EXPECT_THAT(admission.AdmitStream("b"), IsOk());
  }
  Admission::Ticket again = *admission.AdmitStream("a");
  again.Settle();  // has its answer, and counts no more, once
  again.Settle();
  Admission::Ticket moved = *admission.AdmitStream("a");
  moved = std::move(first);
  Admission::Ticket last = *admission.AdmitStream("a");
  EXPECT_FALSE(admission.AdmitStream("a").ok());
  Admission::Ticket unknown = *admission.AdmitStream();
  Admission::Ticket another = *admission.AdmitStream();
  EXPECT_THAT(admission.AdmitStream("b"),
              StatusIs(absl::StatusCode::kResourceExhausted, "the limit of 4 streams is reached"));
  EXPECT_THAT(reasons, ::testing::ElementsAre("max_streams_per_client", "max_streams_per_client", "max_streams"));
}

TEST(AdmissionOfClientsTest, OneClientCallsNoMoreOftenThanItMay) {
  std::vector<std::string> reasons;
  Admission admission({.max_call_rate_per_client = 2,
                       .on_reject = [&](RejectReason reason) { reasons.emplace_back(RejectReasonName(reason)); }});
  EXPECT_THAT(admission.AdmitCall("a"), IsOk());
  EXPECT_THAT(admission.AdmitStream("a"), IsOk());
  const absl::Status refused = admission.AdmitStream("a").status();
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted, "the limit of 2 calls a second of one client is reached"));
  EXPECT_TRUE(HasPushback(refused));
  EXPECT_FALSE(admission.AdmitCall("a").ok());
  EXPECT_THAT(admission.AdmitStream("b"), IsOk());
  for (int i = 0; i < 10; ++i) EXPECT_THAT(admission.AdmitStream(), IsOk());
  EXPECT_THAT(reasons, ::testing::ElementsAre("max_call_rate_per_client", "max_call_rate_per_client"));
}

TEST_F(AdmissionTest, StreamsAreCountedAndGivenBack) {
  absl::StatusOr<Admission::Ticket> first = admission_.AdmitStream();
  absl::StatusOr<Admission::Ticket> second = admission_.AdmitStream();
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  const absl::Status refused = admission_.AdmitStream().status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, "the limit of 2 streams is reached"));
  EXPECT_TRUE(HasPushback(refused));
  EXPECT_EQ(admission_.streams(), 2u);
  Admission::Ticket moved = *std::move(first);
  EXPECT_EQ(admission_.streams(), 2u);
  moved = *std::move(second);  // gives the first back
  EXPECT_EQ(admission_.streams(), 1u);
  EXPECT_THAT(admission_.AdmitStream(), IsOk());
  EXPECT_THAT(reasons_, ::testing::ElementsAre("max_streams"));
}

TEST_F(AdmissionTest, TheBudgetIsSharedAndNeverExceeded) {
  Admission::Ticket a = *admission_.AdmitStream();
  Admission::Ticket b = *admission_.AdmitStream();
  EXPECT_THAT(a.Resize(600), IsOk());
  EXPECT_THAT(b.Resize(400), IsOk());
  const absl::Status refused = b.Resize(401);
  EXPECT_THAT(
      refused,
      StatusIs(
          absl::StatusCode::kResourceExhausted,
          "the stream needs 401 bytes of memory, other streams hold 600 bytes of the --memory-budget of 1000 bytes"));
  EXPECT_TRUE(HasPushback(refused));
  EXPECT_EQ(admission_.bytes(), 1000u);
  EXPECT_THAT(a.Resize(100), IsOk());
  EXPECT_THAT(b.Resize(900), IsOk());
  EXPECT_EQ(admission_.bytes(), 1000u);
  b = Admission::Ticket();
  EXPECT_EQ(admission_.bytes(), 100u);
  EXPECT_THAT(reasons_, ::testing::ElementsAre("memory_budget"));
}

TEST_F(AdmissionTest, APromiseWithoutWorkGivesWay) {
  Admission::Ticket idle = *admission_.AdmitStream();
  Admission::Ticket busy = *admission_.AdmitStream();
  ASSERT_THAT(idle.Promise(900, 0), IsOk());
  EXPECT_EQ(admission_.bytes(), 900u);
  EXPECT_THAT(busy.Resize(400), IsOk());
  EXPECT_EQ(admission_.bytes(), 400u);
  EXPECT_THAT(
      idle.Promise(900, 10),
      StatusIs(
          absl::StatusCode::kResourceExhausted,
          "the stream needs 900 bytes of memory, other streams hold 400 bytes of the --memory-budget of 1000 bytes"));
  // There is room again: the promise is made anew.
  ASSERT_THAT(busy.Resize(0), IsOk());
  EXPECT_THAT(idle.Promise(900, 10), IsOk());
  EXPECT_EQ(admission_.bytes(), 900u);
}

TEST_F(AdmissionTest, WhatIsBehindAPromiseIsNotTakenBack) {
  Admission::Ticket half = *admission_.AdmitStream();
  Admission::Ticket other = *admission_.AdmitStream();
  ASSERT_THAT(half.Promise(900, 300), IsOk());
  // Nothing is taken where it would not be enough.
  EXPECT_THAT(
      other.Resize(701),
      StatusIs(
          absl::StatusCode::kResourceExhausted,
          "the stream needs 701 bytes of memory, other streams hold 900 bytes of the --memory-budget of 1000 bytes"));
  EXPECT_EQ(admission_.bytes(), 900u);
  EXPECT_THAT(other.Resize(700), IsOk());
  EXPECT_EQ(admission_.bytes(), 1000u);
  half = Admission::Ticket();
  EXPECT_THAT(other.Resize(1000), IsOk());
}

TEST_F(AdmissionTest, WhatNeverFitsSaysSoAndAsksForNoRetry) {
  Admission::Ticket ticket = *admission_.AdmitStream();
  const absl::Status refused = ticket.Resize(1001);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                "the stream needs 1001 bytes of memory, the whole --memory-budget is 1000 bytes"));
  EXPECT_FALSE(HasPushback(refused));
  EXPECT_THAT(ticket.Resize(~uint64_t{0}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(reasons_, ::testing::ElementsAre("tensor_too_large", "tensor_too_large"));
}

TEST_F(AdmissionTest, ASettledStreamCountsForDrainingAlone) {
  std::vector<Admission::Ticket> tickets;
  while (true) {
    absl::StatusOr<Admission::Ticket> ticket = admission_.AdmitStream();
    if (!ticket.ok()) break;
    tickets.push_back(*std::move(ticket));
  }
  ASSERT_THAT(tickets[0].Resize(1000), IsOk());
  const size_t limit = tickets.size();
  tickets[0].Settle();
  EXPECT_EQ(admission_.bytes(), 0u);
  EXPECT_EQ(admission_.streams(), limit - 1);
  absl::StatusOr<Admission::Ticket> next = admission_.AdmitStream();
  EXPECT_THAT(next.status(), IsOk());
  next = absl::CancelledError();
  tickets.resize(1);
  EXPECT_EQ(admission_.streams(), 0u);
  EXPECT_FALSE(admission_.WaitUntilIdle(absl::Milliseconds(10)));
  tickets[0].Settle();
  tickets.clear();
  EXPECT_EQ(admission_.streams(), 0u);
  EXPECT_TRUE(admission_.WaitUntilIdle(absl::ZeroDuration()));
}

TEST_F(AdmissionTest, AnAnswerThatIsNotSentCountsAgainstTheBudget) {
  Admission::Ticket ticket = *admission_.AdmitStream("a");
  ASSERT_THAT(ticket.Resize(600), IsOk());
  ticket.SettleStream();
  ticket.SettleStream();
  EXPECT_EQ(admission_.streams(), 0u);
  EXPECT_EQ(admission_.bytes(), 600u);
  ticket = Admission::Ticket();
  EXPECT_EQ(admission_.streams(), 0u);
  EXPECT_EQ(admission_.bytes(), 0u);
}

TEST(AdmissionOfClientsTest, DrainingComesBeforeRates) {
  Admission admission({.max_call_rate_per_client = 1});
  EXPECT_THAT(admission.AdmitStream("a"), IsOk());
  EXPECT_THAT(admission.AdmitStream("a").status().code(), absl::StatusCode::kResourceExhausted);
  admission.StartDraining();
  EXPECT_THAT(admission.AdmitStream("a").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(AdmissionTest, DrainingRefusesAndWaitsForTheLast) {
  absl::StatusOr<Admission::Ticket> ticket = admission_.AdmitStream();
  admission_.StartDraining();
  EXPECT_TRUE(admission_.draining());
  const absl::Status refused = admission_.AdmitStream().status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kUnavailable, "the server is draining"));
  EXPECT_FALSE(HasPushback(refused));
  EXPECT_FALSE(admission_.WaitUntilIdle(absl::Milliseconds(10)));
  std::thread leaver([&] { ticket = Admission::Ticket(); });
  EXPECT_TRUE(admission_.WaitUntilIdle(absl::Seconds(30)));
  leaver.join();
}

}  // namespace
}  // namespace kvcompress
