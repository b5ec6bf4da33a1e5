#include "bench/transport/measure.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress::bench {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

struct ThroughputKind {
  std::string_view name;
  absl::StatusOr<std::unique_ptr<Contestant>> (*make)(const Workload&, const std::string& address);
  bool daemon;  // whether its server tells of its codec
};
template <LibraryMode mode>
absl::StatusOr<std::unique_ptr<Contestant>> NewLibrary(const Workload& workload, const std::string& address) {
  return NewLibraryStreams(workload, address, mode);
}
constexpr ThroughputKind kThroughputKinds[] = {
    {"socket", NewSocketStreams, false},
    {"sink", NewByteStreams, false},
    {"daemon", NewByteStreams, true},
    {"shm", NewSharedMemoryStreams, true},
    {"library", NewLibrary<LibraryMode::kConnection>, true},
    {"library-shm", NewLibrary<LibraryMode::kSharedMemory>, true},
    {"library-copy", NewLibrary<LibraryMode::kSharedMemoryCopy>, true},
    {"local", NewLibrary<LibraryMode::kLocal>, false},
    {"embedded", NewEmbedded, false},
};

struct LatencyKind {
  std::string_view name;
  absl::StatusOr<std::unique_ptr<Caller>> (*make)(const Workload&, const std::string& address);
};
template <CallKind kind>
absl::StatusOr<std::unique_ptr<Caller>> NewCaller(const Workload& workload, const std::string& address) {
  return NewRpcCaller(workload, address, kind);
}
template <LibraryMode mode>
absl::StatusOr<std::unique_ptr<Caller>> NewLibraryCall(const Workload& workload, const std::string& address) {
  return NewLibraryCaller(workload, address, mode);
}
constexpr LatencyKind kLatencyKinds[] = {
    {"socket", NewSocketCaller},
    {"unary", NewCaller<CallKind::kUnary>},
    {"stream", NewCaller<CallKind::kStream>},
    {"open-stream", NewCaller<CallKind::kOpenStream>},
    {"library", NewLibraryCall<LibraryMode::kConnection>},
    {"library-copy", NewLibraryCall<LibraryMode::kSharedMemoryCopy>},
    {"local", NewLibraryCall<LibraryMode::kLocal>},
};

template <typename Kinds>
auto FindKind(const Kinds& kinds, const std::string& name) -> absl::StatusOr<decltype(&kinds[0])> {
  for (const auto& kind : kinds) {
    if (kind.name == name) return &kind;
  }
  return absl::InvalidArgumentError(absl::StrFormat("no contestants of kind \"%s\"", name));
}

template <typename Kinds>
std::string Names(const Kinds& kinds) {
  std::string names;
  for (const auto& kind : kinds) absl::StrAppendFormat(&names, "%s%s", names.empty() ? "" : ", ", kind.name);
  return names;
}

// All that is read at both ends of a window.
struct Snapshot {
  Clock::time_point time;
  uint64_t frame_bytes;
  CpuTime client;
  CpuTime server;
};

absl::StatusOr<Snapshot> Snap(const Progress& progress, const Entrant& entrant) {
  Snapshot snapshot = {Clock::now(), progress.frame_bytes(), OwnCpuTime(), {}};
  if (entrant.pid != 0) {
    KVC_ASSIGN_OR_RETURN(snapshot.server, CpuTimeOf(entrant.pid));
  }
  return snapshot;
}

json Row(const Workload& workload, const Snapshot& begin, const Snapshot& end) {
  const double frames = static_cast<double>(end.frame_bytes - begin.frame_bytes);
  return {
      {"seconds", std::chrono::duration<double>(end.time - begin.time).count()},
      {"tensor_bytes", frames / static_cast<double>(workload.frame_bytes) * static_cast<double>(workload.tensor_bytes)},
      {"client_user", end.client.user - begin.client.user},
      {"client_system", end.client.system - begin.client.system},
      {"server_user", end.server.user - begin.server.user},
      {"server_system", end.server.system - begin.server.system}};
}

absl::StatusOr<json> MeasureOnce(const Workload& workload, const Entrant& entrant, Contestant& contestant,
                                 const Timing& timing) {
  Progress progress;
  absl::Status result;
  std::thread runner([&] { result = contestant.Run(progress); });
  std::this_thread::sleep_for(timing.warm_up);
  const absl::StatusOr<Snapshot> begin = Snap(progress, entrant);
  std::this_thread::sleep_for(timing.window);
  const absl::StatusOr<Snapshot> end = Snap(progress, entrant);
  progress.Stop();
  runner.join();
  KVC_RETURN_IF_ERROR(result);
  KVC_RETURN_IF_ERROR(begin.status());
  KVC_RETURN_IF_ERROR(end.status());
  return Row(workload, *begin, *end);
}

absl::Status Of(const Entrant& entrant, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrFormat("%s %s: %s", entrant.kind, entrant.address, status.message()));
}

}  // namespace

CpuTime OwnCpuTime() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return {Seconds(usage.ru_utime), Seconds(usage.ru_stime)};
}

absl::StatusOr<CpuTime> CpuTimeOf(int pid) {
  std::ifstream file(absl::StrFormat("/proc/%d/stat", pid));
  std::string line;
  std::getline(file, line);
  // Behind the name, which may hold anything: the state, and ten numbers before the two.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return absl::NotFoundError(absl::StrFormat("process %d is gone", pid));
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  return CpuTime{user / ticks, system / ticks};
}

absl::StatusOr<CodecWork> CodecWorkOf(const std::string& address) {
  KVC_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(address));
  grpc::ClientContext context;
  v1::MetricsResponse response;
  const grpc::Status status = v1::KvCompression::NewStub(channel)->Metrics(&context, {}, &response);
  if (!status.ok()) return absl::UnavailableError(status.error_message());
  CodecWork work;
  for (const v1::CodecMetrics& codec : response.codecs()) {
    work.seconds += codec.codec_seconds();
    work.tensor_bytes += codec.tensor_bytes_in();
  }
  return work;
}

absl::StatusOr<json> MeasureThroughput(const Workload& workload, const std::vector<Entrant>& entrants,
                                       const Timing& timing) {
  std::vector<std::unique_ptr<Contestant>> contestants;
  for (const Entrant& entrant : entrants) {
    KVC_ASSIGN_OR_RETURN(const ThroughputKind* kind, FindKind(kThroughputKinds, entrant.kind));
    auto contestant = kind->make(workload, entrant.address);
    if (!contestant.ok()) return Of(entrant, contestant.status());
    contestants.push_back(*std::move(contestant));
  }
  json rows = json::array();
  for (size_t round = 0; round < timing.rounds; ++round) {
    for (size_t i = 0; i < entrants.size(); ++i) {
      const bool daemon = (*FindKind(kThroughputKinds, entrants[i].kind))->daemon;
      CodecWork before;
      CodecWork after;
      if (daemon) {
        KVC_ASSIGN_OR_RETURN(before, CodecWorkOf(entrants[i].address));
      }
      absl::StatusOr<json> row = MeasureOnce(workload, entrants[i], *contestants[i], timing);
      if (!row.ok()) return Of(entrants[i], row.status());
      if (daemon) {
        KVC_ASSIGN_OR_RETURN(after, CodecWorkOf(entrants[i].address));
      }
      (*row)["entrant"] = i;
      (*row)["round"] = round;
      (*row)["codec_seconds"] = after.seconds - before.seconds;
      (*row)["codec_tensor_bytes"] = after.tensor_bytes - before.tensor_bytes;
      rows.push_back(*std::move(row));
    }
  }
  return rows;
}

absl::StatusOr<json> MeasureLatency(const Workload& workload, const std::vector<Entrant>& entrants, size_t calls) {
  constexpr size_t kTurn = 50;
  constexpr size_t kWarmUp = 200;
  std::vector<std::unique_ptr<Caller>> callers;
  for (const Entrant& entrant : entrants) {
    KVC_ASSIGN_OR_RETURN(const LatencyKind* kind, FindKind(kLatencyKinds, entrant.kind));
    auto caller = kind->make(workload, entrant.address);
    if (!caller.ok()) return Of(entrant, caller.status());
    callers.push_back(*std::move(caller));
  }
  std::vector<std::vector<double>> times(callers.size());
  for (size_t done = 0; done < kWarmUp + calls; done += kTurn) {
    for (size_t i = 0; i < callers.size(); ++i) {
      for (size_t call = 0; call < kTurn; ++call) {
        const Clock::time_point start = Clock::now();
        if (const absl::Status status = callers[i]->Call(); !status.ok()) return Of(entrants[i], status);
        if (done < kWarmUp) continue;
        times[i].push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
      }
    }
  }
  json rows = json::array();
  for (std::vector<double>& sorted : times) {
    std::sort(sorted.begin(), sorted.end());
    const auto at = [&sorted](double part) {
      return sorted[static_cast<size_t>(part * static_cast<double>(sorted.size()))];
    };
    rows.push_back({{"calls", sorted.size()}, {"p50", at(0.5)}, {"p99", at(0.99)}, {"p99.9", at(0.999)}});
  }
  return rows;
}

std::string ThroughputKinds() { return Names(kThroughputKinds); }
std::string LatencyKinds() { return Names(kLatencyKinds); }

}  // namespace kvcompress::bench
