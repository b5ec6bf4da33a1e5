#include "client/file/file_codec.h"

#include <deque>

#include "absl/strings/str_format.h"
#include "client/file/input.h"
#include "client/file/prefixed.h"
#include "core/base/status_macros.h"
#include "core/file/compressed_file.h"
#include "core/file/plain_file.h"
#include "core/frame_plan.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;

// The output, or nothing for an empty path. Bytes are appended after a header that is written last.
class OutputFile {
 public:
  static absl::StatusOr<OutputFile> Create(const std::string& path, uint64_t header_bytes, const FileOptions& options) {
    OutputFile output;
    output.end_ = header_bytes;
    if (path.empty()) return output;
    auto file = options.create(path);
    if (!file.ok()) return Prefixed("write output", file.status());
    output.file_ = *std::move(file);
    return output;
  }

  // Bytes of the whole file so far.
  uint64_t size() const { return end_; }

  absl::Status Append(ByteSpan bytes) {
    KVC_RETURN_IF_ERROR(WriteAt(end_, bytes));
    end_ += bytes.size();
    // The disk works while the codec does, and Commit has less to wait for.
    constexpr uint64_t kWritebackBytes = uint64_t{8} << 20;
    if (file_ != nullptr && end_ - writeback_ >= kWritebackBytes) {
      file_->StartWriteback(end_);
      writeback_ = end_;
    }
    return absl::OkStatus();
  }

  absl::Status Finish(std::string_view header) {
    KVC_RETURN_IF_ERROR(WriteAt(0, AsBytes(header)));
    if (file_ == nullptr) return absl::OkStatus();
    const absl::Status status = file_->Commit();
    return status.ok() ? status : Prefixed("write output", status);
  }

 private:
  absl::Status WriteAt(uint64_t offset, ByteSpan bytes) {
    if (file_ == nullptr) return absl::OkStatus();
    const absl::Status status = file_->WriteAt(offset, bytes);
    return status.ok() ? status : Prefixed("write output", status);
  }

  std::unique_ptr<AtomicFile> file_;
  uint64_t end_ = 0;
  uint64_t writeback_ = 0;
};

// Entries whose bytes follow one another.
class Layout {
 public:
  void Add(std::string name, std::string dtype, std::vector<uint64_t> shape, uint64_t bytes) {
    entries_.push_back({std::move(name), std::move(dtype), std::move(shape), end_, end_ + bytes});
    end_ += bytes;
  }
  void AddFrame(std::string name, uint64_t bytes) { Add(std::move(name), "U8", {bytes}, bytes); }

  const std::vector<Entry>& entries() const { return entries_; }
  uint64_t bytes() const { return end_; }

 private:
  std::vector<Entry> entries_;
  uint64_t end_ = 0;
};

// The tensors of a file as jobs, and the sources that these refer to.
template <typename Job>
struct JobList {
  std::vector<Job> jobs;
  std::deque<SubSource> sources;
  uint64_t tensor_bytes = 0;

  const ByteSource* AddSource(const ByteSource& file, uint64_t offset, uint64_t bytes) {
    return &sources.emplace_back(file, offset, bytes);
  }
};

class FrameWriter final : public CompressSink {
 public:
  FrameWriter(OutputFile& output, const JobList<CompressJob>& list, const std::vector<uint64_t>& max_frame_bytes,
              const FileOptions& options)
      : output_(output), list_(list), max_frame_bytes_(max_frame_bytes), options_(options) {}

  absl::Status OnFrame(ByteSpan bytes) override {
    KVC_RETURN_IF_ERROR(output_.Append(bytes));
    if (options_.count_block_codecs) KVC_RETURN_IF_ERROR(counter_.Add(bytes));
    frame_bytes_ += bytes.size();
    const uint64_t bound = max_frame_bytes_[reports_.size()];
    if (frame_bytes_ > bound) return absl::InternalError("a frame is larger than its codec's bound");
    // Within a tensor this is an estimate, which is low where frames are smaller than their bounds.
    const auto part = static_cast<double>(frame_bytes_) / static_cast<double>(bound);
    const auto tensor_bytes = static_cast<double>(list_.jobs[reports_.size()].source->size());
    options_.progress(done_ + static_cast<uint64_t>(part * tensor_bytes), list_.tensor_bytes);
    return absl::OkStatus();
  }

  absl::Status OnTensor(const TensorReport& report) override {
    layout_.AddFrame(report.tensor.name, frame_bytes_);
    frame_bytes_ = 0;
    reports_.push_back(report);
    if (options_.count_block_codecs) block_codecs_.push_back(counter_.Take());
    done_ += report.tensor_bytes;
    options_.progress(done_, list_.tensor_bytes);
    return absl::OkStatus();
  }

  const Layout& layout() const { return layout_; }
  std::vector<TensorReport> TakeReports() { return std::move(reports_); }
  std::vector<BlockCodecs> TakeBlockCodecs() { return std::move(block_codecs_); }

 private:
  OutputFile& output_;
  const JobList<CompressJob>& list_;
  const std::vector<uint64_t>& max_frame_bytes_;
  const FileOptions& options_;
  Layout layout_;
  uint64_t frame_bytes_ = 0;
  uint64_t done_ = 0;
  std::vector<TensorReport> reports_;
  BlockCodecCounter counter_;
  std::vector<BlockCodecs> block_codecs_;
};

class ValueWriter final : public DecompressSink {
 public:
  ValueWriter(OutputFile& output, const std::vector<CompressedTensor>& tensors, uint64_t total,
              const FileOptions& options)
      : output_(output), tensors_(tensors), total_(total), options_(options) {}

  absl::Status OnHeader(const TensorDesc& tensor) override {
    // The output's header was made from what the file said before.
    if (tensor == tensors_[reports_.size()].frame.tensor) return absl::OkStatus();
    return absl::DataLossError(absl::StrFormat("tensor \"%s\" is not what its frame's header says", tensor.name));
  }

  absl::Status OnData(ByteSpan values) override {
    done_ += values.size();
    options_.progress(done_, total_);
    return output_.Append(values);
  }

  absl::Status OnTensor(const TensorReport& report) override {
    reports_.push_back(report);
    return absl::OkStatus();
  }

  std::vector<TensorReport> TakeReports() { return std::move(reports_); }

 private:
  OutputFile& output_;
  const std::vector<CompressedTensor>& tensors_;
  const uint64_t total_;
  const FileOptions& options_;
  uint64_t done_ = 0;
  std::vector<TensorReport> reports_;
};

}  // namespace

absl::StatusOr<FileReport> CompressFile(CodecClient& client, const std::string& input, const std::string& output,
                                        const Profile& profile, std::string_view codec, const FileOptions& options) {
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Input> file, Input::Open(input, options.deadline));
  const Header& header = file->header();
  KVC_RETURN_IF_ERROR(CheckPlainMetadata(header));
  KVC_RETURN_IF_ERROR(file->CheckOutput(output));

  JobList<CompressJob> list;
  std::vector<uint64_t> max_frame_bytes;
  Layout bound;
  FileRotary rotary(header.metadata, options.rotary, options.start, options.artifacts);
  for (const Entry& entry : header.entries) {
    KVC_ASSIGN_OR_RETURN(TensorDesc tensor, DescribeEntry(entry));
    tensor.fingerprint = options.fingerprint;
    KVC_ASSIGN_OR_RETURN(std::string spec, rotary.CodecFor(profile, tensor));
    if (options.keep_nonfinite) {
      KVC_ASSIGN_OR_RETURN(spec, WithFallback(tensor, spec));
    }
    KVC_ASSIGN_OR_RETURN(const uint64_t max_bytes, MaxFrameBytes(tensor, spec));
    max_frame_bytes.push_back(max_bytes);
    bound.AddFrame(entry.name, max_bytes);
    list.jobs.push_back(
        {std::move(tensor), spec, list.AddSource(*file, header.data_start + entry.begin, entry.bytes())});
    list.tensor_bytes += entry.bytes();
  }

  // The header comes before frames whose sizes are not known yet: it gets the size that it has for their bounds.
  KVC_ASSIGN_OR_RETURN(const std::string largest_header,
                       SerializeCompressedHeader(bound.entries(), header.metadata, header.has_metadata, codec,
                                                 /*min_bytes=*/0));
  KVC_ASSIGN_OR_RETURN(OutputFile out, OutputFile::Create(output, largest_header.size(), options));
  FrameWriter writer(out, list, max_frame_bytes, options);
  KVC_RETURN_IF_ERROR(client.Compress(list.jobs, options.deadline, writer));
  KVC_RETURN_IF_ERROR(file->CheckUnchanged());  // unlike a compressed file, it has no checksums that would tell
  KVC_ASSIGN_OR_RETURN(const std::string final_header,
                       SerializeCompressedHeader(writer.layout().entries(), header.metadata, header.has_metadata, codec,
                                                 largest_header.size()));
  KVC_RETURN_IF_ERROR(out.Finish(final_header));
  std::vector<TensorReport> reports = writer.TakeReports();
  for (TensorReport& report : reports) report.policy = profile.PolicyFor(report.tensor);
  return FileReport{.codec = std::string(codec),
                    .tensors = std::move(reports),
                    .block_codecs = writer.TakeBlockCodecs(),
                    .rotary = rotary.use(),
                    .misses_rotary = rotary.is_missed(),
                    .tensor_bytes = list.tensor_bytes,
                    .compressed_bytes = out.size()};
}

absl::StatusOr<FileReport> DecompressFile(CodecClient& client, const std::string& input, const std::string& output,
                                          const FileOptions& options) {
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Input> file, Input::Open(input, options.deadline));
  if (file->is_several_files()) {
    return absl::InvalidArgumentError(
        absl::StrCat("read input: ", input, ": a compressed file is one file, no index of shards and no raw dump"));
  }
  const Header& header = file->header();
  KVC_ASSIGN_OR_RETURN(const CompressedFile compressed, ReadCompressedFile(*file, header));

  JobList<DecompressJob> list;
  Layout layout;
  for (const CompressedTensor& tensor : compressed.tensors) {
    const TensorDesc& desc = tensor.frame.tensor;
    const uint64_t bytes = tensor.frame.elements * DTypeSize(desc.dtype);
    if (bytes > INT64_MAX - layout.bytes()) {
      return absl::ResourceExhaustedError("the tensors together are larger than a file can be");
    }
    layout.Add(tensor.name, std::string(DTypeName(desc.dtype)), desc.shape, bytes);
    list.jobs.push_back({.name = tensor.name,
                         .source = list.AddSource(*file, tensor.offset, tensor.bytes),
                         .fingerprint = options.fingerprint});
  }
  KVC_ASSIGN_OR_RETURN(const std::string out_header,
                       SerializeHeader(layout.entries(), compressed.metadata, compressed.had_metadata));
  KVC_ASSIGN_OR_RETURN(OutputFile out, OutputFile::Create(output, out_header.size(), options));
  ValueWriter writer(out, compressed.tensors, layout.bytes(), options);
  KVC_RETURN_IF_ERROR(client.Decompress(list.jobs, options.deadline, writer));
  KVC_RETURN_IF_ERROR(out.Finish(out_header));
  return FileReport{.codec = compressed.codec,
                    .tensors = writer.TakeReports(),
                    .tensor_bytes = layout.bytes(),
                    .compressed_bytes = file->size()};
}

}  // namespace kvcompress
