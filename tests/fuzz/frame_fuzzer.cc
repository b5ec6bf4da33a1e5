#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/artifact/artifact_store.h"
#include "core/codec/registry.h"
#include "core/decompress_stream.h"
#include "core/tensor_decompressor.h"
#include "tests/core/artifact/small_artifact.h"

// Two attacks on the frame reader and every decoder. With an odd first byte the input is taken for a frame as it is;
// with an even one it is dressed as a frame whose checksums are right, so that headers and payloads reach the code
// behind them: codec, dtype and shape come from the input's next bytes, the payloads from the rest. Streams and spans
// must come to the same result, with a fingerprint that is expected as well, where the first byte says so.
namespace kvcompress {
namespace {

constexpr uint64_t kMaxTensorBytes = 1 << 20;
constexpr std::string_view kFingerprint = "whose";

struct Sink final : DecompressOutput {
  void OnHeader(const TensorDesc&, uint64_t) override {}
  void OnData(Slice part) override { values.insert(values.end(), part.bytes.begin(), part.bytes.end()); }
  void OnTensor(const TensorReport& report) override {
    if (report.tensor_bytes != values.size()) std::abort();
  }
  void OnError(const absl::Status&) override { failed = true; }

  std::vector<std::byte> values;
  bool failed = false;
};

// An artifact of four heads of eight channels, in groups of two, in a directory of its own.
struct Artifacts {
  static constexpr uint64_t kHeads = 4, kHeadDim = 8;

  Artifacts() {
    std::filesystem::create_directories(folder);
    const auto file = SerializeArtifact(testing::SmallArtifact(0, kHeadDim), "fuzzer");
    if (!file.ok()) std::abort();
    id = file->id;
    std::ofstream(folder / "model.kvcal", std::ios::binary)
        .write(reinterpret_cast<const char*>(file->bytes.data()), static_cast<std::streamsize>(file->bytes.size()));
    if (!store.Find(id).ok()) std::abort();
    std::filesystem::remove_all(folder);  // it is in memory
  }
  static Artifacts& Get() {
    static Artifacts& artifacts = *new Artifacts;
    return artifacts;
  }

  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / absl::StrCat("kvc_frame_fuzzer_", getpid());
  ArtifactId id;
  ArtifactStore store{{.directory = folder.string()}};
};

// Every example of the registry, byte codecs one after another, and a codec with an artifact.
const std::vector<std::string>& Specs() {
  static const std::vector<std::string> specs = [] {
    std::vector<std::string> all = {ChainSpec::Parse("int4|zstd(level=1)|rans")->text(),
                                    absl::StrCat("transform(step=0.5,artifact=", Artifacts::Get().id, ")")};
    for (const CodecRow* row : AllCodecs()) {
      for (const std::string_view example : row->examples) all.push_back(ChainSpec::Parse(example)->text());
    }
    return all;
  }();
  return specs;
}

std::vector<std::byte> Dress(ByteSpan input) {
  ByteReader reader(input);
  uint8_t codec = 0;
  uint8_t dtype = 0;
  uint16_t count = 0;
  if (!reader.Read(codec) || !reader.Read(dtype) || !reader.Read(count)) return {};
  constexpr size_t kDTypes = kAllDTypes.size();
  FrameHeader header{
      .tensor = {.name = "", .dtype = kAllDTypes[dtype % kDTypes], .shape = {count}, .axes = {AxisRole::kHeads}},
      .codec = Specs()[codec % Specs().size()],
      .block_elements = kBlockElementsMultiple * static_cast<uint32_t>(1 + dtype / kDTypes)};
  if (dtype / kDTypes % 4 >= 2) header.tensor.fingerprint = kFingerprint;
  if (dtype / kDTypes % 2 != 0) {
    header.is_compact = true;
    header.block_elements = kMaxCompactElements;
  }
  if (header.codec.find("artifact=") != std::string::npos) {
    header.tensor.shape = {Artifacts::kHeads, count % 64u, Artifacts::kHeadDim};
    header.tensor.axes = {AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim};
    if (count % 128 >= 64) {  // a token has all heads
      std::swap(header.tensor.shape[0], header.tensor.shape[1]);
      std::swap(header.tensor.axes[0], header.tensor.axes[1]);
    }
  }
  std::vector<std::byte> frame = SerializeFrameHeader(header);
  std::vector<uint32_t> sizes;
  for (uint64_t i = 0; i < header.block_count(); ++i) {
    uint16_t size = 0;
    ByteSpan payload;
    if (!reader.Read(size) || !reader.ReadBytes(std::min<size_t>(size, reader.remaining()), payload)) break;
    const size_t at = frame.size();
    frame.resize(at + header.block_header_bytes());
    WriteBlockHeader(header, i, payload, frame.data() + at);
    frame.insert(frame.end(), payload.begin(), payload.end());
    sizes.push_back(static_cast<uint32_t>(payload.size()));
  }
  const size_t at = frame.size();
  frame.resize(at + header.end_bytes());
  WriteFrameEnd(header, sizes, frame.data() + at);
  return frame;
}

}  // namespace
}  // namespace kvcompress

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcompress;  // NOLINT
  static ThreadPool pool(1);
  if (size < 2) return 0;
  const ByteSpan input{reinterpret_cast<const std::byte*>(data) + 2, size - 2};
  const std::vector<std::byte> frame =
      data[0] % 2 == 0 ? Dress(input) : std::vector<std::byte>(input.begin(), input.end());
  const Limits limits = {.max_tensor_bytes = kMaxTensorBytes, .environment = {.artifacts = &Artifacts::Get().store}};
  Sink sink;
  DecompressStream stream(pool, limits, sink);
  const size_t piece = 1 + size_t{data[1]} * 16;
  const std::string_view expected = data[0] % 4 >= 2 ? kFingerprint : "";
  absl::Status status = stream.Begin("layer_0_key", nullptr, expected);
  for (size_t at = 0; at < frame.size() && status.ok(); at += piece) {
    status = stream.Append(ByteSpan(frame).subspan(at, std::min(piece, frame.size() - at)));
  }
  if (status.ok()) status = stream.Finish();
  stream.WaitBelow(1);
  const bool good = status.ok() && !sink.failed;

  static TensorDecompressor decompressor(limits);
  static std::vector<std::byte> values(kMaxTensorBytes);
  const absl::StatusOr<size_t> decoded = decompressor.Decompress(frame, values, expected);
  if (decoded.ok() != good) std::abort();
  if (good && !expected.empty() && decompressor.header().tensor.fingerprint != expected) std::abort();
  if (good && !std::equal(sink.values.begin(), sink.values.end(), values.begin(), values.begin() + *decoded)) {
    std::abort();
  }
  return 0;
}
