#include "core/base/ordered_pipeline.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

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
  EXPECT_EQ(order[0], 1);  // the long one has had a turn already
}

TEST(ThreadPoolTest, ManySlowStreamsOfOneClientDoNotHoldUpAnother) {
  ThreadPool pool(1);
  absl::Notification started;
  absl::Notification go;
  std::vector<int> order;
  absl::Notification end;
  std::vector<std::unique_ptr<ThreadPool::Queue>> slow;
  slow.push_back(std::make_unique<ThreadPool::Queue>(pool, "slow"));
  slow[0]->Push([&] {
    started.Notify();
    go.WaitForNotification();
    absl::SleepFor(absl::Milliseconds(5));
  });
  started.WaitForNotification();
  for (int i = 0; i < 30; ++i) {
    slow.push_back(std::make_unique<ThreadPool::Queue>(pool, "slow"));
    for (int j = 0; j < 2; ++j) {
      slow.back()->Push([&] {
        absl::SleepFor(absl::Milliseconds(5));
        order.push_back(0);
        if (order.size() == 64) end.Notify();
      });
    }
  }
  ThreadPool::Queue other(pool, "other");
  for (int j = 0; j < 4; ++j) {
    other.Push([&] {
      order.push_back(1);
      if (order.size() == 64) end.Notify();
    });
  }
  go.Notify();
  end.WaitForNotification();
  EXPECT_EQ(std::count(order.begin(), order.begin() + 6, 1), 4);
}

TEST(ThreadPoolTest, AClientThatComesBackForEachJobKeepsWhatItHasHad) {
  // Its queues live as long as one job: what a client has had too much must outlive them.
  absl::Notification gate;
  absl::Duration since;  // what steady has had since dear's first job; of the pool's one thread
  ThreadPool pool(1);
  ThreadPool::Queue steady(pool, "steady");
  steady.Push([&] { gate.WaitForNotification(); });
  for (int i = 0; i < 60; ++i) {
    steady.Push([&] {
      const absl::Time start = absl::Now();
      absl::SleepFor(absl::Milliseconds(1));
      since += absl::Now() - start;
    });
  }
  {
    ThreadPool::Queue dear(pool, "dear");
    absl::Notification first;
    dear.Push([&] {
      absl::SleepFor(absl::Milliseconds(20));
      since = absl::ZeroDuration();
      first.Notify();
    });
    gate.Notify();
    first.WaitForNotification();
  }
  ThreadPool::Queue again(pool, "dear");
  absl::Notification done;
  absl::Duration waited;
  again.Push([&] {
    waited = since;
    done.Notify();
  });
  done.WaitForNotification();
  EXPECT_GE(waited, absl::Milliseconds(10));
}

TEST(ThreadPoolTest, WhoHoldsJobsDoesThem) {
  ThreadPool pool(2);
  ThreadPool::Queue queue(pool);
  std::vector<int> order;  // of this thread alone
  for (int i = 0; i < 5; ++i) {
    queue.Hold([&order, i, me = std::this_thread::get_id()] {
      EXPECT_EQ(std::this_thread::get_id(), me);
      order.push_back(i);
    });
  }
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(pool.queued(), 5u);
  queue.WorkOnHeld();
  EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(pool.queued(), 0u);
  queue.WorkOnHeld();  // nothing is held
}

TEST(ThreadPoolTest, HeldJobsThatNobodyDidGoWithTheirQueue) {
  ThreadPool pool(1);
  {
    ThreadPool::Queue queue(pool);
    queue.Hold([] { FAIL(); });
  }
  EXPECT_EQ(pool.queued(), 0u);
}

TEST(ThreadPoolTest, WhoHoldsJobsLeavesThemWhileAllThreadsWork) {
  ThreadPool pool(1);
  ThreadPool::Queue busy(pool);
  ThreadPool::Queue queue(pool);
  absl::Notification started;
  absl::Notification go;
  busy.Push([&] {
    started.Notify();
    go.WaitForNotification();
  });
  started.WaitForNotification();
  absl::Notification done;
  queue.Hold([&done, me = std::this_thread::get_id()] {
    EXPECT_NE(std::this_thread::get_id(), me);
    done.Notify();
  });
  queue.WorkOnHeld();
  EXPECT_FALSE(done.HasBeenNotified());
  go.Notify();
  done.WaitForNotification();
}

TEST(ThreadPoolTest, WhoHoldsJobsLeavesThemWhenOthersWait) {
  ThreadPool pool(1);
  ThreadPool::Queue queue(pool, "one");
  ThreadPool::Queue other(pool, "other");
  std::vector<int> order;  // one thread at a time works
  absl::Notification done;
  queue.Hold([&] {
    // The pool's thread may not begin before this has returned.
    other.Push([&] { order.push_back(10); });
    absl::SleepFor(absl::Milliseconds(20));
    order.push_back(0);
  });
  queue.Hold([&] { order.push_back(1); });
  queue.Hold([&] {
    order.push_back(2);
    done.Notify();
  });
  queue.WorkOnHeld();
  done.WaitForNotification();
  EXPECT_THAT(order, ::testing::ElementsAre(0, 10, 1, 2));
}

TEST(ThreadPoolTest, NoMoreWorkAtATimeThanThePoolHasThreads) {
  constexpr int kWorkers = 4;
  constexpr int kJobs = 400;
  ThreadPool pool(2);
  std::atomic<int> working = 0;
  std::atomic<int> most = 0;
  std::atomic<int> ran = 0;
  const auto job = [&] {
    const int now = ++working;
    for (int before = most; before < now && !most.compare_exchange_weak(before, now);) {
    }
    absl::SleepFor(absl::Microseconds(50));
    --working;
    ++ran;
  };
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<ThreadPool::Queue>> queues;
  for (int i = 0; i < kWorkers; ++i) queues.push_back(std::make_unique<ThreadPool::Queue>(pool));
  for (const auto& queue : queues) {
    threads.emplace_back([&job, queue = queue.get()] {
      for (int j = 0; j < kJobs; ++j) {
        j % 5 == 0 ? queue->Push(job) : queue->Hold(job);
        if (j % 3 == 0) queue->WorkOnHeld();
      }
      queue->WorkOnHeld();
    });
  }
  for (std::thread& thread : threads) thread.join();
  while (ran < kWorkers * kJobs) absl::SleepFor(absl::Microseconds(50));
  EXPECT_EQ(most, 2);
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

TEST(OrderedPipelineTest, DeliversInOrderWhateverThreadWorks) {
  ThreadPool pool(3);
  std::vector<int> delivered;
  absl::Mutex submitting;
  int next = 0;
  OrderedPipeline pipeline(pool);
  const auto submit = [&] {
    for (bool more = true; more;) {
      {
        absl::MutexLock lock(&submitting);
        const int i = next++;
        auto work = [i] { absl::SleepFor(absl::Microseconds((i * 37) % 90)); };
        auto deliver = [&delivered, i] { delivered.push_back(i); };
        i % 4 == 0 ? pipeline.Submit(work, deliver) : pipeline.Hold(work, deliver);
        more = i < 500;
      }
      pipeline.WorkOnHeld();
    }
  };
  std::thread another(submit);
  submit();
  another.join();
  pipeline.WaitBelow(1);
  std::vector<int> expected(delivered.size());
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_GE(delivered.size(), 501u);
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
