#include "core/base/ordered_pipeline.h"

#include <gmock/gmock.h>

#include <atomic>
#include <numeric>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace kvcompress {
namespace {

TEST(ThreadPoolTest, HasAThreadForEachCpuByDefault) {
  ThreadPool pool(0);
  EXPECT_GE(pool.size(), 1u);
}

TEST(ThreadPoolTest, RunsWhatIsQueuedBeforeItEnds) {
  std::atomic<int> ran = 0;
  {
    ThreadPool pool(3);
    ThreadPool::Queue queue(pool);
    for (int i = 0; i < 1000; ++i) queue.Push([&] { ++ran; });
    while (pool.queued() > 0) absl::SleepFor(absl::Microseconds(50));
  }
  EXPECT_EQ(ran, 1000);
}

TEST(ThreadPoolTest, AShortQueueDoesNotWaitBehindALongOne) {
  ThreadPool pool(1);
  ThreadPool::Queue long_queue(pool);
  ThreadPool::Queue short_queue(pool);
  absl::Notification started;
  absl::Notification go;
  std::vector<int> order;
  long_queue.Push([&] {
    started.Notify();
    go.WaitForNotification();
  });
  started.WaitForNotification();
  for (int i = 0; i < 100; ++i) long_queue.Push([&order] { order.push_back(0); });
  absl::Notification done;
  short_queue.Push([&order, &done] {
    order.push_back(1);
    done.Notify();
  });
  go.Notify();
  done.WaitForNotification();
  absl::Notification end;
  while (pool.queued() > 0) absl::SleepFor(absl::Microseconds(50));
  long_queue.Push([&end] { end.Notify(); });
  end.WaitForNotification();
  ASSERT_EQ(order.size(), 101u);
  EXPECT_EQ(order[1], 1);
}

TEST(OrderedPipelineTest, DeliversInOrderOneAtATime) {
  ThreadPool pool(4);
  std::vector<int> delivered;
  std::atomic<int> delivering = 0;
  {
    OrderedPipeline pipeline(pool);
    for (int i = 0; i < 500; ++i) {
      pipeline.Submit([i] { absl::SleepFor(absl::Microseconds((i * 37) % 90)); },
                      [&, i] {
                        EXPECT_EQ(++delivering, 1);
                        delivered.push_back(i);
                        --delivering;
                      });
    }
    pipeline.WaitBelow(1);
    EXPECT_EQ(pipeline.in_flight(), 0u);
  }
  std::vector<int> expected(500);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(delivered, expected);
}

TEST(OrderedPipelineTest, DestructionWaitsForEverything) {
  ThreadPool pool(2);
  for (int round = 0; round < 200; ++round) {
    int delivered = 0;
    {
      OrderedPipeline pipeline(pool);
      for (int i = 0; i < 5; ++i) pipeline.Submit([] {}, [&] { ++delivered; });
    }
    ASSERT_EQ(delivered, 5);
  }
}

}  // namespace
}  // namespace kvcompress
