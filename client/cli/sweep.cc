#include "client/cli/sweep.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/strings/str_format.h"
#include "absl/synchronization/blocking_counter.h"
#include "core/base/status_macros.h"
#include "core/codec/chain_spec.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "core/file/compressed_file.h"
#include "core/profile/profile.h"
#include "core/simd/token_meter.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"

namespace kvcompress {
namespace {

// Parameters that the registry's examples do not cover.
constexpr auto kExtraSpecs = std::to_array<std::string_view>({
    // clang-format off
    "int2(group=32)", "int2(group=64)", "int2(group=128)",
    "int3(group=32)", "int3(group=64)", "int3(group=128)",
    "int4(group=32)", "int4(group=64)", "int4(group=128)",
    "int5(group=32)", "int5(group=64)", "int5(group=128)",
    "int6(group=32)", "int6(group=64)", "int6(group=128)",
    "int8(group=32)", "int8(group=64)", "int8(group=128)",
    "int2(group=64)|rans", "int3(group=64)|rans", "int4(group=32)|rans", "int4(group=64)|rans", "int4(group=128)|rans",
    "int5(group=64)|rans", "int6(group=64)|rans", "int8(group=64)|rans", "int8(group=128)|rans",
    "int4(group=64)|huffman", "int4(group=64)|arithmetic", "int4(group=64)|cabac",
    "sparse(ratio=0.25)|int4", "sparse(ratio=0.5)|int4", "sparse(ratio=0.75)|int4", "sparse(ratio=0.5)|int8",
    "raw|zstd(level=-3)", "raw|zstd(level=1)", "raw|zstd(level=3)", "raw|zstd(level=9)", "raw|zstd(level=19)", "raw|lz4",
    "planes", "planes|huffman", "planes|rans", "planes|arithmetic", "planes|cabac", "planes|lz4",
    "planes|zstd(level=-1)", "planes|zstd(level=1)", "planes(delta=none)|rans", "planes(delta=token)|rans",
    "quant(bits=2,per=channel)", "quant(bits=3,per=channel)", "quant(bits=4,per=channel)", "quant(bits=5,per=channel)",
    "quant(bits=6,per=channel)", "quant(bits=8,per=channel)", "quant(bits=10,per=channel)",
    "quant(bits=3,per=channel,symmetric=false)", "quant(bits=4,per=channel,symmetric=false)",
    "quant(bits=5,per=channel,symmetric=false)", "quant(bits=6,per=channel,symmetric=false)",
    "quant(bits=8,per=channel,symmetric=false)", "quant(bits=4,per=channel,group=128,symmetric=false)",
    "quant(bits=2,per=token)", "quant(bits=3,per=token)", "quant(bits=4,per=token)", "quant(bits=6,per=token)",
    "quant(bits=8,per=token)", "quant(bits=10,per=token)", "quant(bits=12,per=token)",
    "quant(bits=3,per=channel,layout=bytes)|rans", "quant(bits=4,per=channel,layout=bytes)|rans",
    "quant(bits=5,per=channel,layout=bytes)|rans", "quant(bits=6,per=channel,layout=bytes)|rans",
    "quant(bits=8,per=channel,layout=bytes)|rans", "quant(bits=10,per=channel,layout=bytes)|rans",
    "rotated(bits=2)", "rotated(bits=3)", "rotated(bits=4)", "rotated(bits=4,sinks=4)", "rotated(bits=4)|rans",
    "blocknorm(bits=4)", "blocknorm(bits=6)", "blocknorm(bits=8)", "blocknorm(bits=10)",
    "transform(bits=2)", "transform(bits=2.5)", "transform(bits=4)", "transform(bits=5)", "transform(bits=6)",
    "transform(snr=20)",
    "transform(bits=3,trellis=false)", "transform(bits=4,trellis=false)",
    "truncate(mantissa=4)|planes|rans", "truncate(mantissa=5)|planes|rans", "truncate(mantissa=7)|planes|rans",
    "clip_range(low=1,high=99)|quant(bits=8)", "clip_sigma(sigma=3)|quant(bits=8)",
    "bounded(min_snr=20)", "bounded(min_snr=40)", "bounded(min_cosine=0.9999)",
    // clang-format on
});

// A direction is repeated until so many runs have not beaten the best one by more than a hundredth, for as long at
// least.
constexpr int kSteadyRuns = 5;
constexpr double kMinSeconds = 0.02;

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void GrowTo(size_t size, std::vector<std::byte>& buffer) {
  if (buffer.size() < size) buffer.resize(size);
}

// The size of the header that CompressFile writes: as if each frame were as large as its bound.
absl::StatusOr<uint64_t> HeaderBytes(const safetensors::Header& header,
                                     const std::vector<TensorCompressor>& compressors, const std::string& spec) {
  std::vector<safetensors::Entry> entries;
  entries.reserve(compressors.size());
  uint64_t end = 0;
  for (const TensorCompressor& compressor : compressors) {
    const uint64_t bytes = compressor.max_frame_bytes();
    entries.push_back({compressor.tensor().name, "U8", {bytes}, end, end + bytes});
    end += bytes;
  }
  KVC_ASSIGN_OR_RETURN(const std::string largest,
                       SerializeCompressedHeader(entries, header.metadata, header.has_metadata, spec, 0));
  return largest.size();
}

void MeasureWhole(const SampledTensor& original, const std::byte* decoded, ErrorSums& sums) {
  const TensorDesc& tensor = original.tensor;
  const std::byte* const values = original.values.data();
  const size_t count = original.values.size() / DTypeSize(tensor.dtype);
  simd::MeasureErrors(tensor.dtype, values, decoded, count, sums);
  const TokenLayout layout = TokenLayoutOf(tensor);
  if (!layout.has_tokens()) return;
  simd::TokenMeter meter;
  TokenSums run;
  TokenTotals totals;
  meter.Begin(layout, 0);
  simd::MeasureTokens(tensor.dtype, values, decoded, count, meter);
  meter.Take(run);
  totals.Begin(layout);
  totals.Merge(run);
  totals.AddTo(sums);
}

}  // namespace

std::vector<std::string> SweepSpecs() {
  std::vector<std::string> specs;
  const auto add = [&](std::string_view text) {
    const ChainSpec spec = *ChainSpec::Parse(text);
    const std::optional<simd::RotaryEmbedding> rotary = spec.For("").rotary();
    if (rotary && *rotary != simd::RotaryEmbedding{}) return;
    if (std::ranges::find(specs, spec.text()) == specs.end()) specs.push_back(spec.text());
  };
  for (const NamedChain& named : AllNamedChains()) add(named.name);
  for (const CodecRow* row : AllCodecs()) {
    for (const std::string_view example : row->examples) add(example);
  }
  for (const std::string_view extra : kExtraSpecs) add(extra);
  for (const int block : {64, 128, 256}) {
    for (const double topk : {0.02, 0.05, 0.1}) {
      for (const int bits : {8, 10}) add(absl::StrFormat("blocknorm(block=%d,topk=%g,bits=%d)", block, topk, bits));
    }
  }
  return specs;
}

Sweep::Sweep(const FileSample& sample, const safetensors::Header& header, FileRotary& rotary, const Options& options)
    : sample_(sample),
      header_(header),
      rotary_(rotary),
      limits_{.environment = {.artifacts = options.artifacts}},
      pool_(options.threads == 1 ? nullptr : std::make_unique<ThreadPool>(options.threads)),
      threads_(pool_ == nullptr ? 1 : pool_->size()),
      max_seconds_(options.max_seconds) {}

absl::Status Sweep::ForEachTensor(const Work& work) {
  std::atomic<size_t> next = 0;
  std::vector<absl::Status> statuses(threads_);
  const auto run = [&](size_t thread) {
    for (size_t i = next++; i < sample_.tensors.size() && statuses[thread].ok(); i = next++) {
      statuses[thread] = work(i, thread);
    }
  };
  if (pool_ == nullptr) {
    run(0);
    return statuses[0];
  }
  KVC_RETURN_IF_ERROR(pool_->status());
  absl::BlockingCounter done(static_cast<int>(threads_));
  ThreadPool::Queue queue(*pool_);
  for (size_t thread = 0; thread < threads_; ++thread) {
    queue.Push([&, thread] {
      run(thread);
      done.DecrementCount();
    });
  }
  done.Wait();
  for (const absl::Status& status : statuses) KVC_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::StatusOr<double> Sweep::TimeBest(const Work& work) {
  std::vector<double> best(sample_.tensors.size(), std::numeric_limits<double>::infinity());
  const Work timed = [&](size_t i, size_t thread) {
    const Clock::time_point begin = Clock::now();
    absl::Status status = work(i, thread);
    best[i] = std::min(best[i], SecondsSince(begin));
    return status;
  };
  double figure = std::numeric_limits<double>::infinity();
  double total = 0;
  for (int steady = 0; (steady < kSteadyRuns || total < kMinSeconds) && total < max_seconds_; ++steady) {
    const Clock::time_point start = Clock::now();
    KVC_RETURN_IF_ERROR(ForEachTensor(timed));
    const double run = SecondsSince(start);
    const double seconds = threads_ == 1 ? std::accumulate(best.begin(), best.end(), 0.0) : run;
    if (seconds < 0.99 * figure) steady = -1;
    figure = std::min(figure, seconds);
    total += run;
  }
  return figure;
}

absl::StatusOr<SpecFigures> Sweep::Measure(std::string_view spec) {
  if (!sample_.whole() && spec.starts_with("heads(")) {
    return absl::InvalidArgumentError("only parts of this file are measured, which do not keep the heads apart");
  }
  const size_t count = sample_.tensors.size();
  frames_.resize(count);
  decoded_.resize(count);
  SpecFigures figures{.spec = std::string(spec), .tensors = std::vector<TensorFigures>(count)};
  KVC_ASSIGN_OR_RETURN(const Profile profile, Profile::Uniform(spec));
  std::vector<TensorCompressor> compressors;
  compressors.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const TensorDesc& tensor = sample_.tensors[i].tensor;
    KVC_ASSIGN_OR_RETURN(const std::string codec, rotary_.CodecFor(profile, tensor));
    KVC_ASSIGN_OR_RETURN(TensorCompressor compressor, TensorCompressor::Create(tensor, codec, limits_));
    GrowTo(compressor.max_frame_bytes(), frames_[i]);
    GrowTo(compressor.tensor_bytes(), decoded_[i]);
    compressors.push_back(std::move(compressor));
  }

  const Work encode = [&](size_t i, size_t) -> absl::Status {
    KVC_ASSIGN_OR_RETURN(figures.tensors[i].frame_bytes,
                         compressors[i].Compress(sample_.tensors[i].values, frames_[i]));
    return absl::OkStatus();
  };
  std::deque<TensorDecompressor> decompressors;  // of the threads
  while (decompressors.size() < threads_) decompressors.emplace_back(limits_);
  const Work decode = [&](size_t i, size_t thread) {
    const ByteSpan frame = ByteSpan(frames_[i]).first(figures.tensors[i].frame_bytes);
    return decompressors[thread].Decompress(frame, decoded_[i]).status();
  };
  KVC_ASSIGN_OR_RETURN(figures.encode_seconds, TimeBest(encode));
  KVC_ASSIGN_OR_RETURN(figures.decode_seconds, TimeBest(decode));

  const std::string told = profile.is_uniform() ? figures.spec : "profile";  // by a file's header
  KVC_ASSIGN_OR_RETURN(figures.compressed_bytes, HeaderBytes(header_, compressors, told));
  for (size_t i = 0; i < count; ++i) {
    const SampledTensor& original = sample_.tensors[i];
    if (!IsOpaque(original.tensor.dtype)) MeasureWhole(original, decoded_[i].data(), figures.tensors[i].sums);
    if (compressors[i].chain().lossless() &&
        !std::equal(original.values.begin(), original.values.end(), decoded_[i].begin())) {
      return absl::DataLossError(absl::StrFormat("%s is not lossless on tensor \"%s\"", spec, original.tensor.name));
    }
    figures.compressed_bytes += figures.tensors[i].frame_bytes;
  }
  return figures;
}

double Sweep::MeasureCopy() {
  decoded_.resize(sample_.tensors.size());
  for (size_t i = 0; i < decoded_.size(); ++i) GrowTo(sample_.tensors[i].values.size(), decoded_[i]);
  const Work copy = [&](size_t i, size_t) {
    const std::vector<std::byte>& values = sample_.tensors[i].values;
    if (!values.empty()) std::memcpy(decoded_[i].data(), values.data(), values.size());
    return absl::OkStatus();
  };
  return TimeBest(copy).value_or(0);
}

}  // namespace kvcompress
