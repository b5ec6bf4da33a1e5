#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/transport/contestant.h"

// Measurements that take turns, so that what disturbs one contestant disturbs all.
namespace kvcompress::bench {

// CPU seconds of a process, all threads.
struct CpuTime {
  double user = 0;
  double system = 0;
};
CpuTime OwnCpuTime();
// Of another process; to the clock tick, which is what the kernel tells.
absl::StatusOr<CpuTime> CpuTimeOf(int pid);

// What a daemon's codec has worked on since its start.
struct CodecWork {
  double seconds = 0;  // of pool threads
  uint64_t tensor_bytes = 0;
};
absl::StatusOr<CodecWork> CodecWorkOf(const std::string& address);

struct Entrant {
  std::string kind;     // see Kinds()
  std::string address;  // empty: of this process
  int pid = 0;          // of its server; 0: there is none
};

struct Timing {
  size_t rounds = 1;
  std::chrono::milliseconds warm_up{100};
  std::chrono::milliseconds window{250};
};

// Lets each contestant run for a warm-up and a window in each round; what moved in the window counts. An array, a row
// for each entrant and round: seconds, bytes of tensors, CPU seconds of both sides; where there is a daemon, its
// codec's.
absl::StatusOr<nlohmann::json> MeasureThroughput(const Workload& workload, const std::vector<Entrant>& entrants,
                                                 const Timing& timing);

// `calls` calls of each, a few dozen of one before those of the next. An array, a row for each entrant: microseconds at
// 50, 99 and 99.9 % of the calls, and their number.
absl::StatusOr<nlohmann::json> MeasureLatency(const Workload& workload, const std::vector<Entrant>& entrants,
                                              size_t calls);

// Names of the kinds of contestants, for a help text.
std::string ThroughputKinds();
std::string LatencyKinds();

}  // namespace kvcompress::bench
