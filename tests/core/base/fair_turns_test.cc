#include "core/base/fair_turns.h"

#include <gmock/gmock.h>

namespace kvcompress {
namespace {

struct One {
  explicit One(double a_turn) : cost(a_turn) {}

  FairShare share;
  double cost;
  double had = 0;  // in truth
};

// One turn, by whoever's it is.
One& Turn(FairTurns<One>& turns) {
  One& next = turns.Next();
  const double expected = turns.Begin(next);
  next.had += next.cost;
  turns.End(next, expected, next.cost);
  return next;
}

TEST(FairTurnsTest, TimeIsDividedByWhatTurnsCost) {
  FairTurns<One> turns;
  One slow(100);
  One fast(1);
  turns.Add(slow);
  turns.Add(fast);
  while (slow.had < 10'000) Turn(turns);
  EXPECT_NEAR(fast.had, slow.had, 200);
}

TEST(FairTurnsTest, WhoComesLateDoesNotCatchUpAndDoesNotWaitForARound) {
  FairTurns<One> turns;
  std::vector<One> many(50, One(100));
  for (One& one : many) turns.Add(one);
  for (int i = 0; i < 75; ++i) Turn(turns);
  One late(1);
  turns.Add(late);
  EXPECT_EQ(&Turn(turns), &late);
  while (many[0].had < 1000) Turn(turns);
  EXPECT_LE(late.had, 1000 - 150 + 200);
}

TEST(FairTurnsTest, DearTurnsAreNotPutOffForEverByCheapNewcomers) {
  FairTurns<One> turns;
  One dear(100);
  turns.Add(dear);
  Turn(turns);
  int newcomers = 0;
  for (;; ++newcomers) {
    ASSERT_LT(newcomers, 1000);
    One newcomer(1);
    turns.Add(newcomer);
    const bool its_turn = &Turn(turns) == &newcomer;
    turns.Remove(newcomer);
    if (!its_turn) break;
  }
  EXPECT_GE(newcomers, 100);  // what the dear turn has cost
}

TEST(FairTurnsTest, TurnsInWorkCountBeforeTheyEnd) {
  FairTurns<One> turns;
  One a(10);
  One b(10);
  turns.Add(a);
  turns.Add(b);
  Turn(turns);
  Turn(turns);
  One& first = turns.Next();
  const double expected = turns.Begin(first);
  EXPECT_NE(&turns.Next(), &first);
  turns.End(first, expected, 10);
}

TEST(FairTurnsTest, NothingIsSavedUpAndNothingIsOwedAfterIdleness) {
  FairTurns<One> turns;
  One a(100);
  One b(1);
  turns.Add(a);
  Turn(turns);
  turns.Remove(a);
  turns.Add(b);
  turns.Add(a);
  EXPECT_DOUBLE_EQ(a.share.had, b.share.had);
}

}  // namespace
}  // namespace kvcompress
