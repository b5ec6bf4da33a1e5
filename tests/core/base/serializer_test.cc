#include "core/base/serializer.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <utility>
#include <vector>

namespace kvcompress {
namespace {

TEST(SerializerTest, EachCallOfOneThreadRunsTheStep) {
  Serializer serializer;
  int runs = 0;
  for (int i = 1; i <= 3; ++i) {
    serializer.Run([&] { ++runs; });
    EXPECT_EQ(runs, i);
  }
}

TEST(SerializerTest, AStepThatAsksRunsAgainAfterItHasReturned) {
  Serializer serializer;
  int runs = 0;
  bool inside = false;
  std::function<void()> step = [&] {
    EXPECT_FALSE(std::exchange(inside, true));
    if (++runs < 5) serializer.Run(step);
    inside = false;
  };
  serializer.Run(step);
  EXPECT_EQ(runs, 5);
}

// Threads bring work and ask for a step that does all there is: none of it is left, and no two do it at once.
TEST(SerializerTest, NothingIsLeftWhenManyThreadsAsk) {
  constexpr int kThreads = 4;
  constexpr int kItems = 20'000;
  Serializer serializer;
  std::atomic<int> brought = 0;
  int done = 0;  // of whoever runs the step
  std::atomic<int> inside = 0;
  const auto step = [&] {
    EXPECT_EQ(inside.fetch_add(1, std::memory_order_relaxed), 0);
    done += brought.exchange(0, std::memory_order_relaxed);
    inside.fetch_sub(1, std::memory_order_relaxed);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int item = 0; item < kItems; ++item) {
        brought.fetch_add(1, std::memory_order_relaxed);
        serializer.Run(step);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(done, kThreads * kItems);
}

}  // namespace
}  // namespace kvcompress
