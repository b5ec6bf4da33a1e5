#pragma once

#include <algorithm>
#include <cstddef>

namespace kvcompress {

// On how many threads gRPC receives and calls reactors, on a machine with so many CPUs.
constexpr size_t ReceivingThreads(size_t cpus) { return std::clamp<size_t>(cpus / 2, 2, 16); }

// Whether one of them may work on what it has received, in place of one of the pool's. Not where they are fewer than
// those, and streams are so many that all could be at work while CPUs idle: two for each stream let one receive
// meanwhile.
constexpr bool MayWorkWhereReceived(size_t receiving_threads, size_t pool_threads, size_t streams) {
  return pool_threads <= receiving_threads || 2 * streams <= receiving_threads;
}

}  // namespace kvcompress
