#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace kvcompress {

// Divides time evenly among those that want it, by what their turns have really cost. `T` has a member `share` of type
// FairShare. Not thread-safe; those that it knows must stay where they are.
//
// It is fair queueing: each has a clock of the time that it has had, and now() is what this clock would be if all that
// want time had it evenly at every moment. Who comes begins at now(), so nothing is saved up; who has had more than
// that waits until the others have had as much. The next turn is for whoever would be done with it first: that counts
// what the turn will cost, by what the last one did, so that cheap turns do not wait for dear ones.
struct FairShare {
  double had = 0;       // the time that it has had, and what its turns in work are expected to cost
  double expected = 0;  // what its next turn will cost: as much as the last one that has ended
  size_t in_work = 0;   // turns
  bool waits = false;   // for a turn
};

template <typename T>
class FairTurns {
 public:
  // It waits for a turn from here on, until Remove.
  void Add(T& one) {
    FairShare& share = one.share;
    if (share.waits) return;
    if (share.in_work == 0) Come(share);
    share.waits = true;
    waiting_.push_back(&one);
  }
  void Remove(T& one) {
    FairShare& share = one.share;
    if (!share.waits) return;
    share.waits = false;
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &one));
    if (share.in_work == 0) Leave();
  }

  // Whether nobody waits for a turn.
  bool empty() const { return waiting_.empty(); }
  // Whose turn it is, of those that wait.
  T& Next() const {
    const auto done_first = [](const T* a, const T* b) {
      return a->share.had + a->share.expected < b->share.had + b->share.expected;
    };
    return **std::min_element(waiting_.begin(), waiting_.end(), done_first);
  }

  // A turn begins; returns what it is expected to cost, for End. Whoever takes it still waits for the next one.
  double Begin(T& one) {
    FairShare& share = one.share;
    ++share.in_work;
    share.had += share.expected;
    return share.expected;
  }
  void End(T& one, double expected, double cost) {
    FairShare& share = one.share;
    share.had += cost - expected;
    share.expected = cost;
    now_ += cost / static_cast<double>(active_);
    latest_ = std::max(latest_, share.had);
    if (--share.in_work == 0 && !share.waits) Leave();
  }

  double now() const { return now_; }

 private:
  void Come(FairShare& share) {
    ++active_;
    share.had = std::max(share.had, now_);
  }
  // When nobody wants time there is nobody to be fair to: what anyone has had too much is forgotten.
  void Leave() {
    if (--active_ == 0) now_ = std::max(now_, latest_);
  }

  std::vector<T*> waiting_;
  size_t active_ = 0;  // that wait or are in work
  double now_ = 0;
  double latest_ = 0;  // the most that anyone has had
};

}  // namespace kvcompress
