#include "bench/transport/batches.h"

#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_format.h"
#include "client/local_client.h"
#include "client/remote/remote_client.h"
#include "core/base/status_macros.h"

namespace kvcompress::bench {
namespace {

using nlohmann::json;

// What processes have used so far.
struct Usage {
  double cpu = 0;         // seconds
  uint64_t switches = 0;  // of threads on CPUs
};

Usage OwnUsage() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const CpuTime cpu = OwnCpuTime();
  return {cpu.user + cpu.system, static_cast<uint64_t>(usage.ru_nvcsw + usage.ru_nivcsw)};
}

// Threads that have ended do not count; a daemon's live as long as it does.
Usage UsageOf(int pid) {
  Usage usage;
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator(absl::StrFormat("/proc/%d/task", pid), error)) {
    std::ifstream schedstat(task.path() / "schedstat");
    double nanoseconds = 0;
    schedstat >> nanoseconds;
    usage.cpu += 1e-9 * nanoseconds;
    std::ifstream status(task.path() / "status");
    for (std::string word; status >> word;) {
      uint64_t count = 0;
      if (word.ends_with("ctxt_switches:") && status >> count) usage.switches += count;
    }
  }
  return usage;
}

class FrameSink final : public CompressSink {
 public:
  absl::Status OnFrame(ByteSpan bytes) override {
    frame_.insert(frame_.end(), bytes.begin(), bytes.end());
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport&) override {
    frames_.push_back(std::move(frame_));
    frame_.clear();
    return absl::OkStatus();
  }
  std::vector<std::vector<std::byte>> frames_;

 private:
  std::vector<std::byte> frame_;
};

class NoSink final : public CompressSink, public DecompressSink {
 public:
  absl::Status OnFrame(ByteSpan) override { return absl::OkStatus(); }
  absl::Status OnHeader(const TensorDesc&) override { return absl::OkStatus(); }
  absl::Status OnData(ByteSpan) override { return absl::OkStatus(); }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }
};

// The same bytes in so many tensors, and their frames.
struct Cut {
  std::vector<MemorySource> values;
  std::vector<CompressJob> compress;
  std::vector<std::vector<std::byte>> frames;
  std::vector<MemorySource> frame_sources;
  std::vector<DecompressJob> decompress;
};

absl::Status MakeCut(size_t tensors, uint64_t tensor_bytes, ByteSpan values, Cut& cut) {
  KVC_ASSIGN_OR_RETURN(const Workload workload, Workload::Make(1, tensor_bytes, size_t{64} << 10));
  cut.values.reserve(tensors);
  for (size_t i = 0; i < tensors; ++i) {
    cut.values.emplace_back(values.subspan(i * static_cast<size_t>(tensor_bytes), static_cast<size_t>(tensor_bytes)));
    TensorDesc tensor = workload.tensor;
    tensor.name = absl::StrFormat("layer_%d_key", i);
    cut.compress.push_back({.tensor = std::move(tensor), .codec = kCodec, .source = &cut.values.back()});
  }
  FrameSink sink;
  KVC_RETURN_IF_ERROR(MakeLocalClient(0)->Compress(cut.compress, absl::InfiniteFuture(), sink));
  cut.frames = std::move(sink.frames_);
  cut.frame_sources.reserve(tensors);
  for (size_t i = 0; i < tensors; ++i) {
    cut.frame_sources.emplace_back(cut.frames[i]);
    cut.decompress.push_back({.name = cut.compress[i].tensor.name, .source = &cut.frame_sources.back()});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CodecClient>> NewClient(const Entrant& entrant) {
  if (entrant.kind == "local") return MakeLocalClient(0);
  return MakeRemoteClient({.address = entrant.address, .shared_memory = entrant.kind != "library"});
}

struct Spent {
  double client = 0;
  double server = 0;
  double switches = 0;  // both sides, a call
  double seconds = 0;
};

template <typename Call>
absl::StatusOr<Spent> Measure(const Entrant& entrant, size_t calls, const Call& call) {
  const Usage client = OwnUsage();
  const Usage server = entrant.pid == 0 ? Usage{} : UsageOf(entrant.pid);
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < calls; ++i) KVC_RETURN_IF_ERROR(call());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Usage client_end = OwnUsage();
  const Usage server_end = entrant.pid == 0 ? Usage{} : UsageOf(entrant.pid);
  const double n = static_cast<double>(calls);
  return Spent{(client_end.cpu - client.cpu) / n, (server_end.cpu - server.cpu) / n,
               static_cast<double>(client_end.switches - client.switches + server_end.switches - server.switches) / n,
               seconds / n};
}

}  // namespace

absl::StatusOr<json> MeasureBatches(size_t tensors, uint64_t tensor_bytes, const std::vector<Entrant>& entrants,
                                    const Timing& timing) {
  constexpr size_t kCalls = 8;
  json rows = json::array();
  for (const Entrant& entrant : entrants) {
    KVC_ASSIGN_OR_RETURN(const std::unique_ptr<CodecClient> client, NewClient(entrant));
    const uint64_t bytes = tensors * tensor_bytes;
    ByteSpan values = Values();
    std::unique_ptr<SharedBuffer> buffer;
    if (entrant.kind == "library-shm") {
      buffer = client->Allocate(static_cast<size_t>(bytes));
      std::memcpy(buffer->bytes().data(), values.data(), static_cast<size_t>(bytes));
      values = buffer->bytes();
    }
    Cut many, one;
    KVC_RETURN_IF_ERROR(MakeCut(tensors, tensor_bytes, values, many));
    KVC_RETURN_IF_ERROR(MakeCut(1, bytes, values, one));
    for (const bool compress : {true, false}) {
      std::vector<Spent> best(2, Spent{1e9, 1e9, 1e9, 1e9});
      for (size_t round = 0; round <= timing.rounds; ++round) {
        for (const bool is_many : {true, false}) {
          const Cut& cut = is_many ? many : one;
          NoSink sink;
          KVC_ASSIGN_OR_RETURN(const Spent spent, Measure(entrant, kCalls, [&] {
                                 return compress ? client->Compress(cut.compress, absl::InfiniteFuture(), sink)
                                                 : client->Decompress(cut.decompress, absl::InfiniteFuture(), sink);
                               }));
          if (round == 0) continue;
          Spent& kept = best[is_many];
          kept.client = std::min(kept.client, spent.client);
          kept.server = std::min(kept.server, spent.server);
          kept.switches = std::min(kept.switches, spent.switches);
          kept.seconds = std::min(kept.seconds, spent.seconds);
        }
      }
      const double gb = 1e-9 * static_cast<double>(bytes);
      for (const bool is_many : {true, false}) {
        const Spent& spent = best[is_many];
        rows.push_back({{"kind", entrant.kind},
                        {"address", entrant.address},
                        {"direction", compress ? "compress" : "decompress"},
                        {"tensors", is_many ? tensors : 1},
                        {"client_cpu_per_gb", spent.client / gb},
                        {"server_cpu_per_gb", spent.server / gb},
                        {"switches", spent.switches},
                        {"gb_per_s", gb / spent.seconds}});
      }
    }
  }
  return rows;
}

}  // namespace kvcompress::bench
