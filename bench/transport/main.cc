// Moves tensors by every transport, and peers' bytes by the same.
//
//   kvc_bench_transport serve PORT_FILE sink|socket ADDRESS...
//   kvc_bench_transport throughput|latency|batches [--streams=N] [--tensor_bytes=N] ... KIND[,ADDRESS[,PID]]...
//
// `serve` runs a peer until it is killed; PORT_FILE gets {"listen": [ADDRESS...]} once it listens. The others measure,
// and write JSON to the standard output. ADDRESS is HOST:PORT or unix:PATH. scripts/bench_transport.py runs all of it.

#include <signal.h>

#include <cstdio>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "bench/transport/batches.h"
#include "bench/transport/measure.h"
#include "bench/transport/sink.h"
#include "bench/transport/socket.h"
#include "core/base/allocator.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "server/net/acceptor.h"

ABSL_FLAG(size_t, streams, 1, "streams at the same time");
ABSL_FLAG(uint64_t, tensor_bytes, 65536, "bytes of a tensor");
ABSL_FLAG(size_t, message_bytes, 1048576, "most bytes of a tensor in one message");
ABSL_FLAG(size_t, rounds, 5, "rounds of throughput");
ABSL_FLAG(int64_t, warm_up_ms, 100, "before each window");
ABSL_FLAG(int64_t, window_ms, 250, "of throughput, for each contestant and round");
ABSL_FLAG(size_t, tensors, 64, "tensors of a call, for batches");
ABSL_FLAG(size_t, calls, 10000, "calls of each contestant, for latency");

namespace kvcompress::bench {
namespace {

absl::Status WritePortFile(const std::string& path, const std::vector<std::string>& addresses) {
  const std::string text = nlohmann::json{{"listen", addresses}}.dump() + "\n";
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  KVC_RETURN_IF_ERROR(file->WriteAt(0, AsBytes(text)));
  return file->Commit();
}

// By sockets like the daemon's, with buffers like its.
absl::Status ServeSink(const std::string& port_file, std::vector<std::string> addresses) {
  Sink sink;
  grpc::ServerBuilder builder;
  Acceptor acceptor({});
  for (std::string& address : addresses) {
    KVC_ASSIGN_OR_RETURN(Listener listener, Listener::Open(address, 0600));
    address = listener.address();
    acceptor.Add(std::move(listener), MakeGrpcReceiver(builder, grpc::InsecureServerCredentials()));
  }
  builder.RegisterService(&sink);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("the sink cannot listen");
  KVC_RETURN_IF_ERROR(acceptor.Start());
  KVC_RETURN_IF_ERROR(WritePortFile(port_file, addresses));
  server->Wait();
  return absl::OkStatus();
}

absl::Status ServeSockets(const std::string& port_file, std::vector<std::string> addresses) {
  std::vector<std::unique_ptr<Socket>> listeners;
  for (std::string& address : addresses) {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Socket> listener, Socket::Listen(address));
    listeners.push_back(std::move(listener));
  }
  std::vector<std::thread> threads;
  for (const auto& listener : listeners) threads.emplace_back(ServeSocket, std::cref(*listener));
  KVC_RETURN_IF_ERROR(WritePortFile(port_file, addresses));
  for (std::thread& thread : threads) thread.join();
  return absl::OkStatus();
}

absl::StatusOr<Entrant> ParseEntrant(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ',');
  Entrant entrant;
  entrant.kind = parts[0];
  if (parts.size() > 1) entrant.address = parts[1];
  if (parts.size() > 3 || (parts.size() == 3 && !absl::SimpleAtoi(parts[2], &entrant.pid))) {
    return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is not KIND,ADDRESS,PID", text));
  }
  return entrant;
}

absl::Status Measure(const std::string& command, const std::vector<std::string>& words) {
  KVC_ASSIGN_OR_RETURN(const Workload workload,
                       Workload::Make(absl::GetFlag(FLAGS_streams), absl::GetFlag(FLAGS_tensor_bytes),
                                      absl::GetFlag(FLAGS_message_bytes)));
  std::vector<Entrant> entrants;
  for (const std::string& word : words) {
    KVC_ASSIGN_OR_RETURN(Entrant entrant, ParseEntrant(word));
    entrants.push_back(std::move(entrant));
  }
  const Timing timing = {absl::GetFlag(FLAGS_rounds), std::chrono::milliseconds(absl::GetFlag(FLAGS_warm_up_ms)),
                         std::chrono::milliseconds(absl::GetFlag(FLAGS_window_ms))};
  const auto measure = [&] {
    if (command == "latency") return MeasureLatency(workload, entrants, absl::GetFlag(FLAGS_calls));
    if (command == "throughput") return MeasureThroughput(workload, entrants, timing);
    return MeasureBatches(absl::GetFlag(FLAGS_tensors), workload.tensor_bytes, entrants, timing);
  };
  KVC_ASSIGN_OR_RETURN(const nlohmann::json rows, measure());
  std::printf("%s\n", rows.dump().c_str());
  return absl::OkStatus();
}

absl::Status Main(const std::vector<std::string>& words) {
  const std::string command = words.empty() ? "" : words[0];
  if (command == "serve" && words.size() > 3) {
    const std::vector<std::string> addresses(words.begin() + 3, words.end());
    Values();  // before the first call
    if (words[2] == "sink") return ServeSink(words[1], addresses);
    if (words[2] == "socket") return ServeSockets(words[1], addresses);
  }
  if ((command == "throughput" || command == "latency" || command == "batches") && words.size() > 1) {
    return Measure(command, {words.begin() + 1, words.end()});
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("usage: see --help\nkinds of contestants for throughput: %s\nfor latency: %s", ThroughputKinds(),
                      LatencyKinds()));
}

}  // namespace
}  // namespace kvcompress::bench

int main(int argc, char** argv) {
  kvcompress::KeepFreedMemory();
  signal(SIGPIPE, SIG_IGN);
  absl::SetProgramUsageMessage(
      "\n  serve PORT_FILE sink|socket ADDRESS...\n  throughput|latency|batches [flags] KIND[,ADDRESS[,PID]]...");
  const std::vector<char*> words = absl::ParseCommandLine(argc, argv);
  const absl::Status status = kvcompress::bench::Main({words.begin() + 1, words.end()});
  if (status.ok()) return 0;
  std::fprintf(stderr, "kvc_bench_transport: %s\n", std::string(status.message()).c_str());
  return 1;
}
