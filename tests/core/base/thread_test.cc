#include "core/base/thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>

#include "core/base/thread_pool.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

// While it lives, no thread can be started: each would need a stack that no address space has.
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, size_t{1} << 60);
    pthread_setattr_default_np(&huge);
  }
  ~NoThreads() { pthread_setattr_default_np(&before_); }

 private:
  pthread_attr_t before_;
};

TEST(ThreadTest, RunsWhatItIsGiven) {
  std::atomic<bool> ran = false;
  absl::StatusOr<std::thread> thread = StartThread([&] { ran = true; });
  ASSERT_THAT(thread, IsOk());
  thread->join();
  EXPECT_TRUE(ran);
}

TEST(ThreadTest, WithoutAThreadToBeHadThereIsAnError) {
  const NoThreads none;
  EXPECT_THAT(StartThread([] {}), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("start a thread: ")));
  EXPECT_THAT(ThreadReserve::Take(3), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("start a thread: ")));
}

TEST(ThreadTest, AReserveEndsWhenItIsDestroyed) {
  EXPECT_THAT(ThreadReserve::Take(GrpcThreads()), IsOk());
  EXPECT_THAT(ThreadReserve::Take(0), IsOk());
}

TEST(ThreadTest, APoolWithoutThreadsSaysSo) {
  EXPECT_THAT(ThreadPool(2).status(), IsOk());
  const NoThreads none;
  const ThreadPool pool(2);
  EXPECT_EQ(pool.size(), 0u);
  EXPECT_EQ(pool.wanted(), 2u);
  EXPECT_THAT(pool.status(), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("thread")));
}

}  // namespace
}  // namespace kvcompress
