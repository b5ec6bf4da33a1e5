// Puts load on a daemon and tells, as JSON, what came of it: streams that start together and make calls of one tensor
// each. `--address=local` does the same in this process: what the daemon must have answered.

#include <sys/resource.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <latch>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/local_client.h"
#include "client/remote/remote_client.h"
#include "core/base/allocator.h"
#include "core/base/status_macros.h"
#include "tests/testing/values.h"

ABSL_FLAG(std::string, address, "local", "of the daemon, as clients take it");
ABSL_FLAG(bool, decompress, false, "send frames instead of tensors");
ABSL_FLAG(size_t, streams, 1, "threads, each with a call in flight");
ABSL_FLAG(size_t, calls, 1, "of each stream, one after another");
ABSL_FLAG(size_t, warm_up, 0, "calls of each stream before those, which do not count");
ABSL_FLAG(absl::Duration, pause, absl::ZeroDuration(), "of each stream between its calls");
ABSL_FLAG(size_t, inputs, 64, "different tensors: stream i sends number i modulo this");
ABSL_FLAG(uint64_t, tensor_bytes, 1 << 20, "of F16 values");
ABSL_FLAG(std::string, codec, "int4(group=64)", "spec");
ABSL_FLAG(bool, shared_connection, false, "one connection for all streams");
ABSL_FLAG(bool, shared_memory, false, "send through shared memory where the daemon offers it");
ABSL_FLAG(bool, keep, false,
          "have the output of a call in memory, that of the call before, and hash the last one alone");
ABSL_FLAG(absl::Duration, timeout, absl::Minutes(10), "of a call");
ABSL_FLAG(int, attempts, 1, "most attempts of a call");
ABSL_FLAG(absl::Duration, connect_timeout, absl::Seconds(20), "how long a daemon that was there is waited for");

namespace kvcompress {
namespace {

constexpr size_t kBufferBytes = size_t{16} << 20;

// A tensor of any size over one buffer, which it goes through again and again. Reads of up to a MiB are in place.
class RepeatedSource final : public ByteSource {
 public:
  RepeatedSource(ByteSpan buffer, uint64_t phase, uint64_t size) : buffer_(buffer), phase_(phase), size_(size) {}

  uint64_t size() const override { return size_; }

  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override {
    if (offset > size_ || count > size_ - offset) return absl::OutOfRangeError("read past the end of the tensor");
    const size_t at = (phase_ + offset) % kBufferBytes;
    if (count <= buffer_.size() - at) return buffer_.subspan(at, count);
    scratch.resize(count);
    for (size_t done = 0; done < count;) {
      const ByteSpan from = buffer_.subspan((phase_ + offset + done) % kBufferBytes);
      const size_t take = std::min(count - done, from.size());
      std::copy_n(from.begin(), take, scratch.begin() + static_cast<ptrdiff_t>(done));
      done += take;
    }
    return ByteSpan(scratch);
  }

 private:
  const ByteSpan buffer_;  // kBufferBytes, and the first MiB of them again
  const uint64_t phase_;
  const uint64_t size_;
};

std::vector<std::byte> MakeBuffer() {
  std::vector<std::byte> buffer =
      testing::MakeValues(DType::kF16, kBufferBytes / 2, testing::Distribution::kOutliers, /*seed=*/7);
  buffer.reserve(kBufferBytes + (1 << 20));
  buffer.insert(buffer.end(), buffer.begin(), buffer.begin() + (1 << 20));
  return buffer;
}

// The output of a call: hashed as it comes, or kept.
class Output final : public CompressSink, public DecompressSink {
 public:
  explicit Output(bool keeps) : keeps_(keeps) {}

  void Begin() {
    XXH3_64bits_reset(state_.get());
    filled_ = 0;
  }
  absl::Status OnFrame(ByteSpan bytes) override { return Add(bytes); }
  absl::Status OnData(ByteSpan bytes) override { return Add(bytes); }
  absl::Status OnHeader(const TensorDesc&) override { return absl::OkStatus(); }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }

  bool keeps() const { return keeps_; }
  std::string hash() const {
    const uint64_t hash = keeps_ ? XXH3_64bits(kept_.data(), filled_) : XXH3_64bits_digest(state_.get());
    return absl::StrFormat("%016x", hash);
  }

 private:
  absl::Status Add(ByteSpan bytes) {
    if (!keeps_) {
      XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
      return absl::OkStatus();
    }
    if (kept_.size() < filled_ + bytes.size()) kept_.resize(filled_ + bytes.size());
    std::memcpy(kept_.data() + filled_, bytes.data(), bytes.size());
    filled_ += bytes.size();
    return absl::OkStatus();
  }

  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const bool keeps_;
  const std::unique_ptr<XXH3_state_t, Free> state_{XXH3_createState()};
  std::vector<std::byte> kept_;
  size_t filled_ = 0;
};

class Collector final : public CompressSink {
 public:
  absl::Status OnFrame(ByteSpan bytes) override {
    frame.insert(frame.end(), bytes.begin(), bytes.end());
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }

  std::vector<std::byte> frame;
};

struct Input {
  CompressJob compress;
  std::unique_ptr<const ByteSource> values;
  std::unique_ptr<const ByteSource> frame;  // to decompress; null: to compress
};

absl::StatusOr<std::vector<Input>> MakeInputs(ByteSpan buffer) {
  const uint64_t bytes = absl::GetFlag(FLAGS_tensor_bytes);
  std::vector<Input> inputs(std::min(absl::GetFlag(FLAGS_inputs), absl::GetFlag(FLAGS_streams)));
  const std::unique_ptr<CodecClient> local = MakeLocalClient(0);
  for (size_t i = 0; i < inputs.size(); ++i) {
    Input& input = inputs[i];
    input.values = std::make_unique<RepeatedSource>(buffer, i * 65536, bytes);
    input.compress = {.tensor = testing::MakeTensor("t", DType::kF16, {bytes / 2}),
                      .codec = absl::GetFlag(FLAGS_codec),
                      .source = input.values.get()};
    if (!absl::GetFlag(FLAGS_decompress)) continue;
    Collector collector;
    KVC_RETURN_IF_ERROR(local->Compress(std::span(&input.compress, 1), absl::InfiniteFuture(), collector));
    input.frame = std::make_unique<MemorySource>(std::move(collector.frame));
  }
  return inputs;
}

// What one stream tells of its calls.
struct Outcome {
  int attempts = 0;
  absl::Duration time;          // of all calls, from the common start
  absl::Duration last_attempt;  // of the last call
  absl::Duration cpu;           // of the process meanwhile
  std::map<std::string, int> codes;
  std::set<std::string> hashes;  // of the calls that succeeded
  std::string error;             // the last one
};

absl::StatusOr<std::unique_ptr<CodecClient>> MakeClient(std::function<void(const RetryEvent&)> on_retry) {
  const std::string address = absl::GetFlag(FLAGS_address);
  if (address == "local") return MakeLocalClient(0);
  return MakeRemoteClient({.address = address,
                           .connect_timeout = absl::GetFlag(FLAGS_connect_timeout),
                           .retry = {.max_attempts = absl::GetFlag(FLAGS_attempts)},
                           .shared_memory = absl::GetFlag(FLAGS_shared_memory),
                           .on_retry = std::move(on_retry)});
}

// The attempts that the call in this thread has begun, and when it began, or will begin, the last.
thread_local int t_attempts = 0;
thread_local absl::Time t_attempt_start;

void OnRetry(const RetryEvent& event) {
  ++t_attempts;
  t_attempt_start = absl::Now() + event.delay;
}

absl::Duration ProcessCpu() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

Outcome RunStream(CodecClient& client, const Input& input) {
  Outcome outcome;
  absl::Duration cpu_before;
  absl::Time start;
  Output output(absl::GetFlag(FLAGS_keep));
  const size_t warm_up = absl::GetFlag(FLAGS_warm_up);
  for (size_t call = 0; call < warm_up + absl::GetFlag(FLAGS_calls); ++call) {
    if (call == warm_up) {
      outcome = {};
      cpu_before = ProcessCpu();
      start = absl::Now();
    }
    const absl::Time deadline = absl::Now() + absl::GetFlag(FLAGS_timeout);
    output.Begin();
    absl::Status status;
    t_attempts = 1;
    t_attempt_start = absl::Now();
    if (input.frame == nullptr) {
      status = client.Compress(std::span(&input.compress, 1), deadline, output);
    } else {
      const DecompressJob job{.name = "t", .source = input.frame.get()};
      status = client.Decompress(std::span(&job, 1), deadline, output);
    }
    outcome.attempts += t_attempts;
    outcome.last_attempt = absl::Now() - t_attempt_start;
    ++outcome.codes[absl::StatusCodeToString(status.code())];
    absl::SleepFor(absl::GetFlag(FLAGS_pause));
    if (!status.ok()) {
      outcome.error = std::string(status.message());
    } else if (!output.keeps()) {
      outcome.hashes.insert(output.hash());
    }
  }
  outcome.time = absl::Now() - start;
  outcome.cpu = ProcessCpu() - cpu_before;
  if (output.keeps() && outcome.error.empty()) outcome.hashes.insert(output.hash());
  return outcome;
}

nlohmann::json ToJson(const Outcome& outcome) {
  return {{"attempts", outcome.attempts},
          {"seconds", absl::ToDoubleSeconds(outcome.time)},
          {"process_cpu_seconds", absl::ToDoubleSeconds(outcome.cpu)},
          {"last_attempt_seconds", absl::ToDoubleSeconds(outcome.last_attempt)},
          {"codes", outcome.codes},
          {"hashes", outcome.hashes},
          {"error", outcome.error}};
}

absl::Status Run() {
  const std::vector<std::byte> buffer = MakeBuffer();
  KVC_ASSIGN_OR_RETURN(const std::vector<Input> inputs, MakeInputs(buffer));
  const size_t streams = absl::GetFlag(FLAGS_streams);
  std::vector<std::unique_ptr<CodecClient>> clients(absl::GetFlag(FLAGS_shared_connection) ? 1 : streams);
  for (std::unique_ptr<CodecClient>& client : clients) {
    KVC_ASSIGN_OR_RETURN(client, MakeClient(OnRetry));
  }
  std::vector<Outcome> outcomes(streams);
  std::latch ready(static_cast<ptrdiff_t>(streams));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < streams; ++i) {
    threads.emplace_back([&, i] {
      ready.arrive_and_wait();
      outcomes[i] = RunStream(*clients[i % clients.size()], inputs[i % inputs.size()]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  nlohmann::json result = nlohmann::json::array();
  for (const Outcome& outcome : outcomes) result.push_back(ToJson(outcome));
  std::puts(result.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvcompress

int main(int argc, char** argv) {
  kvcompress::KeepFreedMemory();
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = kvcompress::Run();
  if (!status.ok()) std::fprintf(stderr, "kvc_load: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
