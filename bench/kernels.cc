// Speed of the kernels and of all codec chains on one core, beside memcpy and general compressors on the same bytes in
// the same run.
//
//   kvc_bench_kernels [--check] [Google Benchmark's flags, such as --benchmark_filter=F16 or --benchmark_out=FILE.json]
//
// Prints GB/s of tensor bytes and the ratio to memcpy; the ratio is what carries over to another machine. Repetitions
// of all benchmarks are interleaved at random, and the medians are shown. With --check the exit status is 1 when
// quantization with error sums is below 0.5 of memcpy, or decoding below 0.7, on a CPU with AVX-512.

#include <benchmark/benchmark.h>
#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/chain_blocks.h"
#include "bench/small_tensors.h"
#include "core/base/half.h"
#include "core/codec/chain.h"
#include "core/codec/registry.h"
#include "core/frame/frame.h"
#include "core/simd/error_sums.h"
#include "core/simd/group_quant.h"
#include "core/simd/token_sums.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

constexpr size_t kBytes = size_t{64} << 20;
constexpr char kMemcpy[] = "memcpy";
constexpr char kFused[] = "quantize+measure F16 int4 g64";
constexpr char kDecode[] = "dequantize F16 int4 g64";

// Everything is allocated and touched once: the first touch of a page costs more than any kernel here.
std::vector<std::byte>& Source(DType dtype) {
  static std::map<DType, std::vector<std::byte>> sources;
  std::vector<std::byte>& source = sources[dtype];
  if (source.empty()) {
    source = testing::MakeValues(dtype, (size_t{4} << 20) / DTypeSize(dtype), testing::Distribution::kOutliers);
    const size_t period = source.size();
    source.resize(kBytes);
    for (size_t at = period; at < kBytes; at += period) std::memcpy(source.data() + at, source.data(), period);
  }
  return source;
}

// Where values, codes and compressed bytes go.
std::vector<std::byte>& Target() {
  static std::vector<std::byte> target(std::max(ZSTD_compressBound(kBytes), kBytes + (kBytes >> 7)), std::byte{1});
  return target;
}
std::vector<std::byte>& Scales() {
  static std::vector<std::byte> scales(kBytes / 16, std::byte{1});
  return scales;
}

void Count(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kBytes));
}

void Memcpy(benchmark::State& state) {
  const auto& source = Source(DType::kF16);
  auto& target = Target();
  for (auto _ : state) {
    std::memcpy(target.data(), source.data(), kBytes);
    benchmark::ClobberMemory();
  }
  Count(state);
}

void Quantize(benchmark::State& state, const simd::GroupQuantFormat& format, bool measure) {
  const auto& source = Source(format.dtype);
  for (auto _ : state) {
    ErrorSums sums;
    const bool ok = simd::Quantize(format, source.data(), kBytes / DTypeSize(format.dtype), Scales().data(),
                                   Target().data(), measure ? &sums : nullptr);
    if (!ok) state.SkipWithError("the values cannot be quantized");
    benchmark::DoNotOptimize(sums);
  }
  Count(state);
}

void Dequantize(benchmark::State& state, const simd::GroupQuantFormat& format) {
  static std::vector<std::byte> codes(kBytes / 2, std::byte{1});
  const size_t count = kBytes / DTypeSize(format.dtype);
  if (!simd::Quantize(format, Source(format.dtype).data(), count, Scales().data(), codes.data(), nullptr)) {
    state.SkipWithError("the values cannot be quantized");
  }
  for (auto _ : state) {
    simd::Dequantize(format, Scales().data(), codes.data(), count, Target().data());
    benchmark::ClobberMemory();
  }
  Count(state);
}

void Measure(benchmark::State& state, DType dtype) {
  const auto& source = Source(dtype);
  std::memcpy(Target().data(), source.data(), kBytes);
  for (size_t i = 0; i < kBytes / DTypeSize(dtype); i += 7) StoreFromF32(dtype, 0.25f, Target().data(), i);
  for (auto _ : state) {
    ErrorSums sums;
    simd::MeasureErrors(dtype, source.data(), Target().data(), kBytes / DTypeSize(dtype), sums);
    benchmark::DoNotOptimize(sums);
  }
  Count(state);
}

// A codec chain as the daemon runs it: block by block, with all figures.
class ChainBench {
 public:
  explicit ChainBench(std::string_view spec) : spec_(spec) {}

  void Encode(benchmark::State& state) {
    if (!Prepare(state)) return;
    for (auto _ : state) {
      ErrorSums sums;
      if (!blocks_->Encode(sums).ok()) state.SkipWithError("a block cannot be encoded");
      benchmark::DoNotOptimize(sums);
    }
    Count(state);
  }

  void Decode(benchmark::State& state) {
    if (!Prepare(state)) return;
    ErrorSums sums;
    if (!blocks_->Encode(sums).ok()) state.SkipWithError("a block cannot be encoded");
    for (auto _ : state) {
      if (!blocks_->Decode(MutableByteSpan(Target()).first(kBytes)).ok()) {
        state.SkipWithError("a block cannot be decoded");
      }
    }
    Count(state);
  }

 private:
  static constexpr size_t kTokens = kBytes / (8 * 128 * 2);

  bool Prepare(benchmark::State& state) {
    if (blocks_.has_value()) return true;
    const TensorDesc tensor = testing::MakeTensor("layer_0_key", DType::kF16, {1, 8, kTokens, 128});
    chain_ = ChainSpec::Parse(spec_)->Resolve({}, tensor);
    if (!chain_.ok()) {
      state.SkipWithError("the chain cannot be parsed");
      return false;
    }
    blocks_.emplace(*chain_, tensor, Source(DType::kF16));
    if (!blocks_->Analyze().ok()) state.SkipWithError("the tensor cannot be analyzed");
    return !state.error_occurred();
  }

  const std::string_view spec_;
  absl::StatusOr<CodecChain> chain_;
  std::optional<ChainBlocks> blocks_;
};

void Zstd(benchmark::State& state, int level) {
  for (auto _ : state) {
    const size_t size = ZSTD_compress(Target().data(), Target().size(), Source(DType::kF16).data(), kBytes, level);
    if (ZSTD_isError(size)) state.SkipWithError(ZSTD_getErrorName(size));
  }
  Count(state);
}

void Lz4(benchmark::State& state) {
  for (auto _ : state) {
    const int size = LZ4_compress_default(reinterpret_cast<const char*>(Source(DType::kF16).data()),
                                          reinterpret_cast<char*>(Target().data()), static_cast<int>(kBytes),
                                          static_cast<int>(Target().size()));
    if (size <= 0) state.SkipWithError("lz4 failed");
  }
  Count(state);
}

std::string Name(std::string_view what, const simd::GroupQuantFormat& format) {
  return std::string(what) + " " + std::string(DTypeName(format.dtype)) + " int" + std::to_string(format.bits) + " g" +
         std::to_string(format.group);
}

// Registers all benchmarks and returns their names.
std::vector<std::string> Register() {
  std::vector<std::string> names;
  const auto add = [&names](const std::string& name, auto function, const auto&... arguments) {
    names.push_back(name);
    benchmark::RegisterBenchmark(name.c_str(), function, arguments...);
  };
  std::vector<simd::GroupQuantFormat> formats;
  for (const int bits : {2, 3, 4, 5, 6, 8}) formats.push_back({DType::kF16, bits, 64});
  for (const size_t group : {32, 128}) formats.push_back({DType::kF16, 4, group});
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int bits : {4, 8}) formats.push_back({dtype, bits, 64});
  }
  add(kMemcpy, Memcpy);
  for (const auto& format : formats) {
    add(Name("quantize+measure", format), Quantize, format, true);
    add(Name("quantize", format), Quantize, format, false);
    add(Name("dequantize", format), Dequantize, format);
  }
  for (const DType dtype : kKernelDTypes) {
    add("measure " + std::string(DTypeName(dtype)), Measure, dtype);
  }
  for (const CodecRow* row : AllCodecs()) {
    for (const std::string_view spec : row->examples) {
      const auto bench = std::make_shared<ChainBench>(spec);
      add("encode " + std::string(spec), [bench](benchmark::State& state) { bench->Encode(state); });
      add("decode " + std::string(spec), [bench](benchmark::State& state) { bench->Decode(state); });
    }
  }
  for (const std::string_view codec : {"kv3", "transform(step=0.25)", "transform(step=0.25,trellis=false)"}) {
    for (const auto& shape : std::initializer_list<SmallTensors::Shape>{
             {8, 2, 128}, {8, 16, 128}, {2, 256, 64}, {4, 240, 64}, {4, 256, 64}}) {
      const auto bench = std::make_shared<SmallTensors>(codec, shape);
      const std::string of = std::string(codec) + " of " + std::to_string(shape.count());
      add("encode " + of, [bench](benchmark::State& state) { bench->Encode(state); });
      add("decode " + of, [bench](benchmark::State& state) { bench->Decode(state); });
    }
  }
  for (const int level : {1, 3}) add("zstd -" + std::to_string(level), Zstd, level);
  add("lz4", Lz4);
  return names;
}

// Collects the speeds of all repetitions.
class Table : public benchmark::BenchmarkReporter {
 public:
  explicit Table(std::vector<std::string> names) : names_(std::move(names)) {}
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const std::string name = run.run_name.function_name;
      if (run.error_occurred) {
        std::fprintf(stderr, "%s: %s\n", name.c_str(), run.error_message.c_str());
        failed_ = true;
      } else if (run.run_type == Run::RT_Iteration) {
        speeds_[name].push_back(run.counters.at("bytes_per_second") * 1e-9);
      }
    }
  }

  bool failed() const { return failed_; }
  bool Has(const std::string& name) const { return speeds_.count(name) > 0; }
  double Median(const std::string& name) const {
    std::vector<double> speeds = speeds_.at(name);
    std::nth_element(speeds.begin(), speeds.begin() + static_cast<ptrdiff_t>(speeds.size() / 2), speeds.end());
    return speeds[speeds.size() / 2];
  }
  double Ratio(const std::string& name) const { return Has(kMemcpy) ? Median(name) / Median(kMemcpy) : 0; }

  void Print() const {
    std::printf("%-56s %8s %10s   (%s, 64 MiB, one thread)\n", "", "GB/s", "of memcpy", simd::TargetName());
    for (const std::string& name : names_) {
      if (!Has(name)) continue;
      std::printf("%-56s %8.2f %10.2f\n", name.c_str(), Median(name), Ratio(name));
    }
  }

 private:
  std::vector<std::string> names_;
  std::map<std::string, std::vector<double>> speeds_;
  bool failed_ = false;
};

// Whether the two kernels that matter most are as fast as promised.
bool Check(const Table& table) {
  if (std::string_view(simd::TargetName()).substr(0, 4) != "AVX3") {
    std::printf("check: no AVX-512 here, nothing to check\n");
    return true;
  }
  bool good = true;
  for (const auto& [name, wanted] : {std::pair{kFused, 0.5}, std::pair{kDecode, 0.7}}) {
    const double ratio = table.Has(name) ? table.Ratio(name) : 0;
    std::printf("check: %s is %.2f of memcpy, at least %.2f wanted\n", name, ratio, wanted);
    good = good && ratio >= wanted;
  }
  return good;
}

int Main(int argc, char** argv) {
  bool check = false;
  std::vector<char*> arguments;
  // Before the caller's flags, which win.
  static char interleave[] = "--benchmark_enable_random_interleaving=true";
  static char repetitions[] = "--benchmark_repetitions=5";
  static char min_time[] = "--benchmark_min_time=0.08";
  arguments.push_back(argv[0]);
  for (char* flag : {interleave, repetitions, min_time}) arguments.push_back(flag);
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--check") {
      check = true;
    } else {
      arguments.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;

  Table table(Register());
  benchmark::RunSpecifiedBenchmarks(&table);
  table.Print();
  if (table.failed()) return 1;
  return !check || Check(table) ? 0 : 1;
}

}  // namespace
}  // namespace kvcompress

int main(int argc, char** argv) { return kvcompress::Main(argc, argv); }
