#include "server/rpc/service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "client/remote/remote_stream.h"
#include "proto/wire/methods.h"
#include "server/daemon.h"
#include "server/rpc/receiving_threads.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Options options;
    options.listen = {"127.0.0.1:0"};
    options.metrics_listen = "";
    options.threads = 1;
    options.shared_memory_prefix = "kvc-rpc-test-";
    absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
    ASSERT_THAT(daemon, IsOk());
    daemon_ = *std::move(daemon);
    channel_ = grpc::CreateChannel(daemon_->listen().front(), grpc::InsecureChannelCredentials());
  }

  // How a call of the method that sends these bytes as its only message ends.
  grpc::Status Call(std::string_view method, const std::string& message) {
    const grpc::Slice slice(message);
    grpc::ByteBuffer response;
    const std::string path = absl::StrCat("/kvcompress.v1.KvCompression/", std::string(method));
    return CallUnary(channel_, path, absl::Now() + absl::Seconds(30), grpc::ByteBuffer(&slice, 1), response).status;
  }

  std::unique_ptr<Daemon> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST(ReceivingThreadsTest, WorkWhereTheyCannotLeaveCpusIdle) {
  EXPECT_EQ(ReceivingThreads(1, 1).count(), 2u);
  EXPECT_EQ(ReceivingThreads(8, 8).count(), 4u);
  EXPECT_EQ(ReceivingThreads(128, 128).count(), 16u);
  EXPECT_TRUE(ReceivingThreads(2, 2).BeginWork(256));   // two CPUs are busy with what gRPC's threads do
  EXPECT_TRUE(ReceivingThreads(64, 4).BeginWork(256));  // as the cgroup has it
  EXPECT_TRUE(ReceivingThreads(8, 8).BeginWork(2));
  EXPECT_FALSE(ReceivingThreads(8, 8).BeginWork(3));
  EXPECT_FALSE(ReceivingThreads(2, 3).BeginWork(2));
}

TEST(ReceivingThreadsTest, OneGoesOnReceiving) {
  ReceivingThreads threads(8, 4);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(threads.BeginWork(1));
  EXPECT_FALSE(threads.BeginWork(1));
  EXPECT_FALSE(threads.BeginWork(1));
  threads.EndWork();
  EXPECT_TRUE(threads.BeginWork(1));
  EXPECT_FALSE(threads.BeginWork(1));
}

// A parser would make many times as many bytes of it.
TEST_F(ServiceTest, NoMethodParsesAMessageBeforeItsSizeIsChecked) {
  std::string large;
  for (size_t i = 0; i < (size_t{2} << 20) / 2; ++i) large += "\x78\x01";  // a field that no message knows
  for (const std::string_view method : AllMethods()) {
    const grpc::Status status = Call(method, large);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_THAT(status.error_message(), HasSubstr("a message above the limit of ")) << method;
  }
}

TEST_F(ServiceTest, BytesThatAreNoMessageAreRefusedByEveryMethod) {
  for (const std::string_view method : AllMethods()) {
    const grpc::Status status = Call(method, "\xff");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_EQ(status.error_message(), "message cannot be parsed") << method;
  }
}

}  // namespace
}  // namespace kvcompress
