#include <kvcompress/client/remote/remote_client.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "absl/time/clock.h"

namespace kvc = kvcompress;

namespace {

// Collects what comes of one tensor.
struct Frame final : kvc::CompressSink {
  absl::Status OnFrame(kvc::ByteSpan part) override {
    bytes.insert(bytes.end(), part.begin(), part.end());
    return absl::OkStatus();
  }
  absl::Status OnTensor(const kvc::TensorReport& done) override {
    report = done;
    return absl::OkStatus();
  }

  std::vector<std::byte> bytes;
  kvc::TensorReport report;
};

absl::Status Compress(const char* address, kvc::ByteSpan values, Frame& frame) {
  const auto client = kvc::MakeRemoteClient({.address = address});
  if (!client.ok()) return client.status();
  const kvc::MemorySource source(values);
  const std::vector<uint64_t> shape = {values.size() / 4};
  const std::vector<kvc::CompressJob> jobs = {
      {.tensor = {.name = "t", .dtype = kvc::DType::kF32, .shape = shape, .axes = kvc::DefaultAxes("t", 1)},
       .codec = "raw|zstd(level=1)",
       .source = &source}};
  return (*client)->Compress(jobs, absl::Now() + absl::Minutes(1), frame);
}

}  // namespace

// Compresses through the daemon at the given address.
int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::vector<std::byte> values(1 << 20);
  Frame frame;
  const absl::Status status = Compress(argv[1], values, frame);
  std::printf("%s, %zu bytes became %zu\n", status.ToString().c_str(), values.size(), frame.bytes.size());
  const bool right = status.ok() && frame.report.tensor_bytes == values.size() && frame.bytes.size() < 10000 &&
                     frame.bytes.size() == frame.report.frame_bytes && std::memcmp(frame.bytes.data(), "KVCF", 4) == 0;
  return right ? 0 : 1;
}
