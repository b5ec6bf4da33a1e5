#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "core/frame/frame.h"
#include "tests/server/session/session_harness.h"

// Streams of requests, right and wrong ones, through the sessions: the input is a little program whose instructions
// append a request each. Frames for Decompress are made by the codecs, and then damaged.
namespace kvcompress {
namespace {

constexpr uint64_t kMaxTensorBytes = 1 << 18;
constexpr uint64_t kWindow = 1 << 16;
constexpr const char* kFingerprint = "whose";

constexpr const char* kSpecs[] = {
    "",
    "int4(group=64)",
    "int8(group=32)",
    "raw",
    "raw|zstd(level=1)",
    "sparse(ratio=0.5)|int4(group=64)",
    "clamp(limit=65504)|int4(group=64)",
    "int9",
};

class Program {
 public:
  explicit Program(ByteSpan bytes) : reader_(bytes) {}

  bool done() const { return reader_.remaining() == 0; }
  // 0 behind the end of the input.
  uint8_t Byte() {
    uint8_t value = 0;
    return reader_.Read(value) ? value : uint8_t{0};
  }
  std::string Bytes(size_t count) {
    ByteSpan bytes;
    if (!reader_.ReadBytes(std::min(count, reader_.remaining()), bytes)) return {};
    return std::string(AsText(bytes));
  }

 private:
  ByteReader reader_;
};

std::string Name(Program& program) {
  const uint8_t choice = program.Byte();
  return choice < 8 ? program.Bytes(choice) : choice < 128 ? "t" : "layer_1_key";
}

DType AnyDType(Program& program) { return kAllDTypes[program.Byte() % kAllDTypes.size()]; }

v1::CompressRequest NextCompressRequest(Program& program) {
  v1::CompressRequest request;
  switch (program.Byte() % 8) {
    case 0: break;
    case 1:
    case 2: {
      v1::Tensor& tensor = *request.mutable_header()->mutable_tensor();
      tensor.set_name(Name(program));
      tensor.set_dtype(static_cast<v1::DType>(program.Byte() % (kAllDTypes.size() + 2)));  // none, and an unknown one
      const int rank = program.Byte() % 10;
      for (int i = 0; i < rank; ++i) tensor.add_shape(uint64_t{program.Byte()} << (program.Byte() % 64));
      const int roles = program.Byte() % 4 == 0 ? rank : 0;
      for (int i = 0; i < roles; ++i) tensor.add_axes(static_cast<v1::AxisRole>(program.Byte() % 7));
      const uint8_t spec = program.Byte();
      request.mutable_header()->set_codec(spec < 200 ? kSpecs[spec % std::size(kSpecs)] : program.Bytes(spec - 200));
      break;
    }
    case 3: {  // a tensor that its data will fit
      v1::Tensor& tensor = *request.mutable_header()->mutable_tensor();
      tensor.set_name("t");
      tensor.set_dtype(static_cast<v1::DType>(AnyDType(program)));
      tensor.add_shape(program.Byte());
      const uint8_t choice = program.Byte();
      request.mutable_header()->set_codec(kSpecs[1 + choice % 6]);
      tensor.set_fingerprint(std::string(choice / 6 * 2, 'f'));  // or one that is too long
      break;
    }
    case 4: request.set_data(std::string(size_t{program.Byte()} << (program.Byte() % 12), '\0')); break;
    default: request.set_data(program.Bytes(program.Byte() + size_t{program.Byte()} * 256)); break;
  }
  return request;
}

// A frame of some values, with a byte changed where the program says so.
std::string MakeFrame(ThreadPool& pool, Program& program) {
  struct Sink final : CompressOutput {
    void OnFrame(Slice bytes) override { frame += AsText(bytes.bytes); }
    void OnTensor(const TensorReport&) override {}
    void OnError(const absl::Status&) override {}
    std::string frame;
  };
  const DType dtype = AnyDType(program);
  const size_t count = size_t{program.Byte()} << (program.Byte() % 9);
  const uint8_t choice = program.Byte();
  const char* spec = kSpecs[1 + choice % 6];
  std::string values = program.Bytes(program.Byte());
  values.resize(NumWords(dtype, {count}).value_or(0) * DTypeSize(dtype));
  Sink sink;
  CompressStream stream(pool, {}, sink);
  const TensorDesc tensor{.name = "t",
                          .dtype = dtype,
                          .shape = {count},
                          .axes = {AxisRole::kOther},
                          .fingerprint = choice < 128 ? "" : kFingerprint};
  if (!stream.Begin(tensor, spec).ok()) return {};
  if (count > 0 && !stream.Append(AsBytes(values)).ok()) return {};
  stream.WaitBelow(1);
  std::string frame = std::move(sink.frame);
  if (const uint8_t flip = program.Byte(); flip > 100 && !frame.empty()) {
    char& byte = frame[(program.Byte() + size_t{program.Byte()} * 256) % frame.size()];
    byte = static_cast<char>(byte ^ flip);
  }
  return frame;
}

void NextDecompressRequests(ThreadPool& pool, Program& program, std::vector<v1::DecompressRequest>& requests) {
  const auto add_frame = [&](std::string bytes) { requests.emplace_back().set_frame(std::move(bytes)); };
  const uint8_t operation = program.Byte();
  switch (operation % 6) {
    case 0: requests.emplace_back(); break;
    case 1: requests.emplace_back().mutable_header()->set_name(Name(program)); break;
    case 2: add_frame(program.Bytes(program.Byte())); break;
    default: {
      const std::string frame = MakeFrame(pool, program);
      const size_t piece = 1 + size_t{program.Byte()} * 64;
      v1::DecompressHeader& header = *requests.emplace_back().mutable_header();
      header.set_name("t");
      if (operation >= 128) header.set_fingerprint(kFingerprint);
      for (size_t at = 0; at < frame.size(); at += piece) add_frame(frame.substr(at, piece));
      break;
    }
  }
}

size_t BytesOf(const v1::CompressResponse& response) { return response.frame().size(); }
size_t BytesOf(const v1::DecompressResponse& response) { return response.data().size(); }

template <typename S>
void Play(ThreadPool& pool, const std::vector<typename S::Request>& requests, bool cancel) {
  Admission admission({.memory_budget = 4 << 20, .max_streams = 1});
  {
    const SessionOptions options = {.limits = {.max_tensor_bytes = kMaxTensorBytes}, .window_bytes = kWindow};
    testing::Driver<S> driver(pool, admission, options);
    if (cancel) {
      driver.PushWhileWanted(requests);
      driver.session.Cancel();
    }
    const absl::Status status = driver.Run(requests);
    if (cancel != absl::IsCancelled(status)) std::abort();
    for (const auto& response : driver.responses) {
      if (BytesOf(response) > kMaxMessageBytes) std::abort();
    }
    const bool reported = !driver.responses.empty() && driver.responses.back().has_stream();
    if (reported != status.ok()) std::abort();
  }
  if (admission.streams() != 0 || admission.bytes() != 0) std::abort();
}

}  // namespace
}  // namespace kvcompress

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvcompress;  // NOLINT
  static ThreadPool pool(2);
  Program program({reinterpret_cast<const std::byte*>(data), size});
  const uint8_t mode = program.Byte();
  const bool cancel = mode % 8 == 7;
  if (mode < 128) {
    std::vector<v1::CompressRequest> requests;
    while (!program.done() && requests.size() < 200) requests.push_back(NextCompressRequest(program));
    Play<CompressSession>(pool, requests, cancel);
  } else {
    std::vector<v1::DecompressRequest> requests;
    while (!program.done() && requests.size() < 1000) NextDecompressRequests(pool, program, requests);
    Play<DecompressSession>(pool, requests, cancel);
  }
  return 0;
}
