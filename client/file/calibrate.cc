#include "client/file/calibrate.h"

#include <deque>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/file/file_rotary.h"
#include "client/file/input.h"
#include "client/file/prefixed.h"
#include "core/base/status_macros.h"
#include "core/base/thread_pool.h"
#include "core/file/compressed_file.h"
#include "core/file/plain_file.h"
#include "core/frame_values.h"

namespace kvcompress {
namespace {

// Of each compressed tensor: enough for a block of each of its heads.
constexpr uint64_t kMaxKeptBytes = uint64_t{64} << 20;

// The inputs, with all that their tensors refer to.
class Caches {
 public:
  // Adds what an opened input holds.
  absl::Status Add(const std::string& path, std::unique_ptr<Input> opened, const CalibrateOptions& options) {
    const Input& input = *inputs_.emplace_back(std::move(opened));
    const safetensors::Header& header = input.header();
    KVC_ASSIGN_OR_RETURN(simd::RotaryEmbedding of_file, RotaryOfMetadata(header.metadata));
    const uint64_t start = options.start.value_or(std::exchange(of_file.start, 0));
    const auto rotary = of_file.theta > 0 ? std::optional(of_file) : std::nullopt;
    if (inputs_.size() > 1 && rotary != rotary_ && !options.rotary) {
      return absl::InvalidArgumentError(
          "its metadata's rope_theta, rope_pairs, rope_dims, rope_offset or rope_scaling differ from the first file's");
    }
    rotary_ = rotary;
    keys_turn_ = keys_turn_ || !SaysThatKeysDoNotTurn(header.metadata);
    return IsCompressedFile(header) ? AddFrames(path, input, start) : AddTensors(path, input, start);
  }

  absl::Status CheckUnchanged() const {
    for (const auto& input : inputs_) KVC_RETURN_IF_ERROR(input->CheckUnchanged());
    return absl::OkStatus();
  }
  absl::Status CheckOutput(const std::string& output) const {
    for (const auto& input : inputs_) KVC_RETURN_IF_ERROR(input->CheckOutput(output));
    return absl::OkStatus();
  }

  const std::vector<CacheTensor>& tensors() const { return tensors_; }
  // What the metadata of the files say, which all say the same.
  const std::optional<simd::RotaryEmbedding>& rotary() const { return rotary_; }
  bool keys_turn() const { return keys_turn_; }
  uint64_t skipped() const { return skipped_; }

 private:
  bool Skips(std::string_view name) {
    if (ParseKvName(name).layer >= 0) return false;
    ++skipped_;
    return true;
  }

  absl::Status AddTensors(const std::string& path, const Input& input, uint64_t start) {
    KVC_RETURN_IF_ERROR(CheckPlainMetadata(input.header()));
    for (const safetensors::Entry& entry : input.header().entries) {
      if (Skips(entry.name)) continue;
      KVC_ASSIGN_OR_RETURN(const TensorDesc tensor, DescribeEntry(entry));
      const SubSource& values = sources_.emplace_back(input, input.header().data_start + entry.begin, entry.bytes());
      tensors_.push_back({path, tensor, &values, start});
    }
    return absl::OkStatus();
  }

  absl::Status AddFrames(const std::string& path, const Input& input, uint64_t start) {
    KVC_ASSIGN_OR_RETURN(const CompressedFile compressed, ReadCompressedFile(input, input.header()));
    for (const CompressedTensor& tensor : compressed.tensors) {
      if (Skips(tensor.name)) continue;
      const SubSource& frame = sources_.emplace_back(input, tensor.offset, tensor.bytes);
      auto values = FrameValues::Open(frame, kMaxKeptBytes, kNoLimits);
      if (!values.ok()) return OfTensor(tensor.name, values.status());
      tensors_.push_back({path, tensor.frame.tensor, values->get(), start});
      frames_.push_back(*std::move(values));
    }
    return absl::OkStatus();
  }

  std::vector<std::unique_ptr<Input>> inputs_;
  std::deque<SubSource> sources_;
  std::vector<std::unique_ptr<FrameValues>> frames_;
  std::vector<CacheTensor> tensors_;
  std::optional<simd::RotaryEmbedding> rotary_;
  bool keys_turn_ = false;
  uint64_t skipped_ = 0;
};

// The weights of a file, which must outlive them.
struct Weights {
  std::unique_ptr<Input> input;
  std::deque<SubSource> sources;
  std::vector<WeightTensor> tensors;

  absl::Status Read(const std::string& path) {
    KVC_ASSIGN_OR_RETURN(input, Input::Open(path));
    for (const safetensors::Entry& entry : input->header().entries) {
      KVC_ASSIGN_OR_RETURN(TensorDesc tensor, DescribeEntry(entry));
      const SubSource& values = sources.emplace_back(*input, input->header().data_start + entry.begin, entry.bytes());
      tensors.push_back({std::move(tensor), &values});
    }
    return absl::OkStatus();
  }
};

// Of each tensor of which not all is kept.
absl::StatusOr<std::map<ArtifactKey, std::vector<uint32_t>>> RanksOf(const CompressionConfig& config,
                                                                     const std::vector<CacheTensor>& caches) {
  std::map<ArtifactKey, std::vector<uint32_t>> all;
  std::set<int64_t> missing = config.layers();
  for (const CacheTensor& cache : caches) {
    const KvName kv = ParseKvName(cache.tensor.name);
    missing.erase(kv.layer);
    absl::StatusOr<std::vector<uint32_t>> ranks = config.RanksFor(cache.tensor);
    if (!ranks.ok()) return Prefixed("config", ranks.status());
    if (!ranks->empty()) all[{static_cast<uint64_t>(kv.layer), !kv.is_key}] = *std::move(ranks);
  }
  if (missing.empty()) return all;
  return absl::InvalidArgumentError(absl::StrFormat(
      "config: it has heads of layer %d, of which the caches have neither keys nor values", *missing.begin()));
}

}  // namespace

absl::StatusOr<CalibrationReport> CalibrateFiles(const std::vector<std::string>& inputs, const std::string& output,
                                                 const CalibrateOptions& options) {
  Caches caches;
  for (const std::string& input : inputs) {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Input> opened, Input::Open(input));
    const absl::Status status = caches.Add(input, std::move(opened), options);
    if (!status.ok()) return inputs.size() > 1 ? Prefixed(input, status) : status;
  }
  KVC_RETURN_IF_ERROR(caches.CheckOutput(output));
  CalibrationReport report;
  if (options.config) {
    KVC_ASSIGN_OR_RETURN(report.ranks, RanksOf(*options.config, caches.tensors()));
  }
  Weights weights;
  if (!options.weights.empty()) KVC_RETURN_IF_ERROR(Prefixed("weights", weights.Read(options.weights)));
  // Before the work, so that a wrong path fails at once.
  auto file = options.create(output);
  if (!file.ok()) return Prefixed("write output", file.status());

  ThreadPool pool(options.threads);
  KVC_ASSIGN_OR_RETURN(report.calibration, Calibrate(caches.tensors(), weights.tensors,
                                                     {.group_dim = options.config ? 1 : options.group_dim,
                                                      .rotary = options.rotary ? options.rotary : caches.rotary(),
                                                      .progress = options.progress},
                                                     pool));
  KVC_RETURN_IF_ERROR(caches.CheckUnchanged());
  KVC_ASSIGN_OR_RETURN(const SerializedArtifact artifact, SerializeArtifact(report.calibration.artifact, options.tool));
  KVC_RETURN_IF_ERROR(Prefixed("write output", (*file)->WriteAt(0, artifact.bytes)));
  KVC_RETURN_IF_ERROR(Prefixed("write output", (*file)->Commit()));
  report.id = artifact.id;
  report.bytes = artifact.bytes.size();
  report.skipped_tensors = caches.skipped();
  report.keys_turn = caches.keys_turn();
  return report;
}

}  // namespace kvcompress
