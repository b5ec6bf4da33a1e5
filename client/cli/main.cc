#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/advice.h"
#include "client/cli/calibration_report.h"
#include "client/cli/file_analysis.h"
#include "client/cli/flags.h"
#include "client/cli/go_flags.h"
#include "client/cli/interrupt.h"
#include "client/cli/options.h"
#include "client/cli/printable.h"
#include "client/cli/progress.h"
#include "client/cli/remote.h"
#include "client/cli/report.h"
#include "client/cli/rotary_report.h"
#include "client/cli/sample.h"
#include "client/cli/sweep.h"
#include "client/cli/sweep_report.h"
#include "client/cli/text_file.h"
#include "client/file/calibrate.h"
#include "client/file/file_codec.h"
#include "client/file/input.h"
#include "client/file/prefixed.h"
#include "client/local_client.h"
#include "client/remote/remote_client.h"
#include "core/artifact/artifact_store.h"
#include "core/base/allocator.h"
#include "core/base/file.h"
#include "core/base/standard_streams.h"
#include "core/base/status_macros.h"
#include "core/codec/named_chains.h"
#include "core/codec/parameter.h"
#include "core/codec/registry.h"
#include "core/file/plain_file.h"
#include "core/profile/compression_config.h"
#include "core/profile/profile.h"
#include "core/quality/quality.h"

namespace kvcompress {
namespace {

// Before any library is initialized.
[[gnu::section(".preinit_array"), gnu::used]] void (*fill_standard_streams)() = FillStandardStreams;

constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

void Print(std::FILE* to, const std::string& text) { std::fwrite(text.data(), 1, text.size(), to); }

void PrintError(const std::string& message) { Print(stderr, absl::StrFormat("Error: %s\n", OneLine(message))); }

// Standard output may be a file on a full disk.
absl::Status PrintResult(const std::string& text) {
  Print(stdout, text);
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return absl::OkStatus();
  return absl::DataLossError("write standard output: not all could be written");
}

constexpr uint64_t kMaxProfileMebibytes = 16;

absl::StatusOr<CompressionConfig> ReadConfig(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const std::string json, ReadText("config", path, kMaxProfileMebibytes));
  absl::StatusOr<CompressionConfig> config = CompressionConfig::Parse(json);
  if (!config.ok()) return Prefixed("config", config.status());
  return config;
}

absl::StatusOr<Profile> ReadProfile(const CliOptions& options) {
  KVC_ASSIGN_OR_RETURN(const std::string json, ReadText("profile", options.profile, kMaxProfileMebibytes));
  KVC_ASSIGN_OR_RETURN(Profile profile, Profile::Parse(json));
  if (profile.needs_codec()) {
    if (options.codec.empty()) {
      return absl::InvalidArgumentError(
          "profile: it says ranks alone: give the codec that keeps them, for example -codec "
          "\"kv(bits=4,artifact=ID)\"");
    }
    KVC_RETURN_IF_ERROR(profile.SetCodec(options.codec));
  } else if (!options.codec.empty()) {
    return absl::InvalidArgumentError("-codec and -profile exclude each other");
  }
  return profile;
}

// `artifacts` may be null, and must outlive the client.
absl::StatusOr<std::unique_ptr<CodecClient>> MakeClient(const CliOptions& options, ArtifactStore* artifacts) {
  if (options.server.empty()) {
    return MakeLocalClient(static_cast<size_t>(options.threads), {.artifacts = artifacts});
  }
  KVC_ASSIGN_OR_RETURN(RemoteOptions remote, ToRemoteOptions(options));
  if (options.verbose) {
    remote.on_retry = [](const RetryEvent& event) {
      Print(stderr, absl::StrFormat("%s; retrying in %.1f s\n", OneLine(std::string(event.status.message())),
                                    absl::ToDoubleSeconds(event.delay)));
    };
  }
  return MakeRemoteClient(remote);
}

std::string SnrText(std::optional<double> snr_db) {
  if (!snr_db) return "none";
  return *snr_db == kInfiniteSnrDb ? "infinite" : FixedText(*snr_db, 2) + " dB";
}

void PrintWarnings(const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings) Print(stderr, absl::StrFormat("Warning: %s\n", OneLine(warning)));
}

void LogTensors(const FileReport& report, bool with_quality) {
  for (const TensorReport& tensor : report.tensors) {
    std::string line = absl::StrFormat("%s: %s, %d bytes, frame of %d bytes", DescribeTensor(tensor.tensor),
                                       tensor.codec, tensor.tensor_bytes, tensor.frame_bytes);
    if (with_quality) {
      const Quality quality = QualityOf(tensor.sums);
      absl::StrAppendFormat(&line, ", RMSE %.6f, SNR %s", quality.rmse, SnrText(quality.snr_db));
      if (quality.token_snr_db) absl::StrAppendFormat(&line, ", token SNR %s", SnrText(quality.token_snr_db));
    }
    Print(stderr, OneLine(line) + "\n");
  }
}

absl::StatusOr<FileReport> RunCodec(const CliOptions& options, FileOptions file_options) {
  absl::StatusOr<Profile> profile = options.profile.empty() ? Profile::Uniform(options.codec) : ReadProfile(options);
  if (!profile.ok()) return profile.status();
  const std::string codec = options.profile.empty() && profile->is_uniform() ? profile->default_codec() : "profile";
  ArtifactStore artifacts({.directory = options.artifacts});
  file_options.artifacts = options.artifacts.empty() ? nullptr : &artifacts;
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<CodecClient> client, MakeClient(options, file_options.artifacts));
  if (options.verbose) {
    Print(stderr,
          absl::StrFormat("%s %s with %s\n", options.decompress ? "decompress" : "compress", OneLine(options.input),
                          options.server.empty() ? "the codec in this process" : OneLine(options.server)));
  }
  absl::StatusOr<FileReport> report =
      options.decompress ? DecompressFile(*client, options.input, options.output, file_options)
                         : CompressFile(*client, options.input, options.output, *profile, codec, file_options);
  if (options.verbose && !options.server.empty()) {
    Print(stderr, absl::StrFormat("transport: %s\n", OneLine(client->Transport())));
  }
  if (report.ok() && !options.decompress) PrintWarnings(ProfileWarnings(*profile, *report));
  return report;
}

// What the flags say of the rotary embedding.
std::optional<simd::RotaryEmbedding> GivenRotary(const CliOptions& options) {
  if (options.rope_theta == 0) return std::nullopt;
  return simd::RotaryEmbedding{
      .theta = options.rope_theta,
      .pairs = options.rope_pairs == "half" ? simd::RotaryPairs::kHalf : simd::RotaryPairs::kInterleaved,
      .dims = static_cast<uint64_t>(options.rope_dims),
      .offset = static_cast<uint64_t>(options.rope_offset),
      .scaling = options.scaling};
}

std::optional<uint64_t> GivenStart(const GoFlags& flags, const CliOptions& options) {
  if (!flags.IsSet("rope-start")) return std::nullopt;
  return static_cast<uint64_t>(options.rope_start);
}

// Those of them that were given, each after a blank.
std::string RopeFlags(const GoFlags& flags, const CliOptions& options) {
  std::string text;
  if (flags.IsSet("rope-theta")) absl::StrAppend(&text, " -rope-theta ", FormatReal(options.rope_theta));
  if (flags.IsSet("rope-pairs")) absl::StrAppend(&text, " -rope-pairs ", options.rope_pairs);
  if (flags.IsSet("rope-dims")) absl::StrAppend(&text, " -rope-dims ", options.rope_dims);
  if (flags.IsSet("rope-offset")) absl::StrAppend(&text, " -rope-offset ", options.rope_offset);
  if (flags.IsSet("rope-scaling")) absl::StrAppend(&text, " -rope-scaling ", ShellWord(options.rope_scaling));
  if (flags.IsSet("rope-start")) absl::StrAppend(&text, " -rope-start ", options.rope_start);
  return text;
}

absl::Status Run(const GoFlags& flags, const CliOptions& options, Interrupts& interrupts) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<FileReport> report;
  {
    ProgressBar bar(options.decompress ? "decompress" : "compress");
    FileOptions file_options = {
        .create = [&](const std::string& path) { return interrupts.CreateFile(path); },
        .progress = [&](uint64_t done, uint64_t total) { bar.Update(done, total); },
        .rotary = GivenRotary(options),
        .start = GivenStart(flags, options),
        .fingerprint = options.fingerprint,
        .keep_nonfinite = options.on_nonfinite == "lossless",
        .count_block_codecs = options.verbose,
    };
    if (options.timeout > absl::ZeroDuration()) file_options.deadline = absl::Now() + options.timeout;
    report = RunCodec(options, file_options);
  }
  if (absl::IsDeadlineExceeded(report.status()) && options.timeout > absl::ZeroDuration()) {
    return absl::DeadlineExceededError(
        absl::StrFormat("not done within the -timeout of %s", absl::FormatDuration(options.timeout)));
  }
  if (!report.ok()) return report.status();
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  if (options.verbose) LogTensors(*report, !options.decompress);
  if (options.verbose && !options.decompress) Print(stderr, RotaryLine(*report));
  if (!options.decompress) PrintWarnings(ReportWarnings(*report));
  return PrintResult(ReportJson(*report, !options.decompress, options.verbose, took.count()));
}

absl::Status RunInspect(const CliOptions& options) {
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Input> file, Input::Open(options.input));
  InspectOptions inspect;
  inspect.format = options.format == "json"  ? InspectFormat::kJson
                   : options.format == "csv" ? InspectFormat::kCsv
                                             : InspectFormat::kTable;
  inspect.analysis = {.rotary = GivenRotary(options).value_or(simd::RotaryEmbedding{}), .per_head = options.per_head};
  inspect.analysis.rotary.start = static_cast<uint64_t>(options.rope_start);
  KVC_ASSIGN_OR_RETURN(const Inspection inspection, Inspect(*file, inspect));
  PrintWarnings(inspection.warnings);
  return PrintResult(inspection.text);
}

absl::Status RunCalibrate(const GoFlags& flags, const CliOptions& options, Interrupts& interrupts) {
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<CalibrationReport> report;
  {
    ProgressBar bar("calibrate");
    CalibrateOptions calibrate = {
        .group_dim = static_cast<uint64_t>(options.group_dim),
        .weights = options.weights,
        .threads = static_cast<size_t>(options.threads),
        .tool = "kv-compress " KVC_VERSION,
        .create = [&](const std::string& path) { return interrupts.CreateFile(path); },
        .progress = [&](uint64_t done, uint64_t total) { bar.Update(done, total); },
    };
    if (!options.config.empty()) {
      KVC_ASSIGN_OR_RETURN(calibrate.config, ReadConfig(options.config));
    }
    calibrate.rotary = GivenRotary(options);
    calibrate.start = GivenStart(flags, options);
    report = CalibrateFiles(options.caches, options.output, calibrate);
  }
  if (!report.ok()) return report.status();
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  if (options.verbose) Print(stderr, CalibrationLines(*report));
  PrintWarnings(CalibrationWarnings(*report, options.output));
  return PrintResult(CalibrationJson(*report, options.output, took.count()));
}

// Those that cannot be measured are left out, unless that is all of them.
absl::Status MeasureSpecs(const std::vector<std::string>& specs, uint64_t bytes, Sweep& sweep, SweepResult& result) {
  result.threads = sweep.threads();
  result.copy_seconds = sweep.MeasureCopy();
  SweepProgress progress(specs.size());
  absl::Status fault;
  for (const std::string& spec : specs) {
    const std::string_view name = NameOfChain(spec);
    const std::string label = name.empty() || name == spec ? spec : absl::StrFormat("%s = %s", name, spec);
    progress.Begin(label);
    absl::StatusOr<SpecFigures> figures = sweep.Measure(spec);
    if (figures.ok()) {
      progress.End(label, absl::StrFormat("%.3f times smaller",
                                          static_cast<double>(bytes) / static_cast<double>(figures->compressed_bytes)));
      result.specs.push_back(*std::move(figures));
    } else if (absl::IsInvalidArgument(figures.status()) || absl::IsFailedPrecondition(figures.status())) {
      fault = figures.status();
      progress.End(label, std::string(figures.status().message()));
      result.refused.emplace_back(spec, figures.status().message());
    } else {
      return figures.status();
    }
  }
  return result.specs.empty() ? fault : absl::OkStatus();
}

absl::Status RunSweep(const GoFlags& flags, const CliOptions& options, Interrupts& interrupts) {
  // More bytes would hardly tell more, and the slowest codecs do a few MiB a second.
  constexpr uint64_t kMaxSweepBytes = uint64_t{32} << 20;
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Input> file, Input::Open(options.input));
  const safetensors::Header& header = file->header();
  KVC_RETURN_IF_ERROR(CheckPlainMetadata(header));
  KVC_RETURN_IF_ERROR(CheckRotation(header, GivenRotary(options).value_or(simd::RotaryEmbedding{})));
  SweepResult result;
  result.links = options.links;
  if (!options.links.empty()) {
    KVC_ASSIGN_OR_RETURN(result.bytes_per_token, BytesPerToken(header));
  }
  // Before the work, so that a wrong path fails at once.
  std::unique_ptr<AtomicFile> page;
  if (!options.report.empty()) {
    auto created = interrupts.CreateFile(options.report);
    if (!created.ok()) return Prefixed("write report", created.status());
    page = *std::move(created);
  }
  KVC_ASSIGN_OR_RETURN(const FileSample sample, SampleFile(*file, header, kMaxSweepBytes));
  result.input = options.input;
  result.context_tokens = static_cast<uint64_t>(options.context_tokens);
  result.limits = {.max_key_mae = options.max_key_mae,
                   .max_value_mae = options.max_value_mae,
                   .min_key_cosine = options.min_key_cosine,
                   .min_value_cosine = options.min_value_cosine};
  result.flags = RopeFlags(flags, options);
  if (!options.artifacts.empty()) absl::StrAppend(&result.flags, " -artifacts ", ShellWord(options.artifacts));
  ArtifactStore store({.directory = options.artifacts});
  ArtifactStore* const artifacts = options.artifacts.empty() ? nullptr : &store;
  FileRotary rotary(header.metadata, GivenRotary(options), GivenStart(flags, options), artifacts);
  // Where times decide, and where there are few, they are worth waiting for.
  const bool all = options.sweep_specs.empty();
  Sweep::Options how = {.threads = static_cast<size_t>(options.threads), .artifacts = artifacts};
  if (!all || !options.links.empty()) how.max_seconds *= 10;
  Sweep sweep(sample, header, rotary, how);
  KVC_RETURN_IF_ERROR(MeasureSpecs(all ? SweepSpecs() : options.sweep_specs, sample.bytes, sweep, result));
  result.rotary = rotary.use();
  if (rotary.is_missed()) PrintWarnings({std::string(kUnknownRotary)});
  if (!all) {
    for (const auto& [spec, why] : result.refused) PrintWarnings({absl::StrFormat("%s is left out: %s", spec, why)});
  }
  const SweepReport report = MakeSweepReport(sample, result);
  if (page != nullptr) {
    KVC_RETURN_IF_ERROR(Prefixed("write report", page->WriteAt(0, AsBytes(report.html))));
    KVC_RETURN_IF_ERROR(Prefixed("write report", page->Commit()));
  }
  return PrintResult(options.format == "table" ? report.table : report.json);
}

std::string CodecHelp() {
  return "Names that stand for a codec spec:\n\n" + DescribeNamedChains() +
         "\nA codec spec is a chain: transforms, one tensor codec, byte codecs, with | between them, for example\n"
         "sparse(ratio=0.5)|int4(group=64)|zstd(level=1). Parameters that are left out have the value in "
         "brackets.\n\n" +
         DescribeCodecs();
}

int Main(std::span<const char* const> words) {
  CliOptions options;
  GoFlags flags("kv-compress");
  DeclareFlags(flags, options);
  if (const absl::Status status = flags.Parse(words); !status.ok()) {
    // Once more after the usage, which scrolls the first one away.
    const std::string fault = OneLine(std::string(status.message()));
    Print(stderr, absl::StrFormat("%s\n%s\n%s\n", fault, flags.Usage(), fault));
    return kExitUsage;
  }
  if (flags.help()) {
    Print(stderr, flags.Usage());
    return kExitOk;
  }
  absl::Status status;
  if (options.version) {
    status = PrintResult(absl::StrFormat("kv-compress %s\n", KVC_VERSION));
  } else if (options.codec == "help") {
    status = PrintResult(CodecHelp());
  } else if (options.codec == "markdown") {
    status = PrintResult(CodecsMarkdown());
  } else if (status = CompleteOptions(flags, options); status.ok()) {
    if (options.inspect) {
      status = RunInspect(options);
    } else {
      static Interrupts& interrupts = *new Interrupts;
      status = interrupts.Start();
      if (status.ok()) {
        status = options.sweep       ? RunSweep(flags, options, interrupts)
                 : options.calibrate ? RunCalibrate(flags, options, interrupts)
                                     : Run(flags, options, interrupts);
      }
    }
  }
  if (status.ok()) return kExitOk;
  PrintError(WithAdvice(std::string(status.message())));
  return kExitFailure;
}

}  // namespace
}  // namespace kvcompress

int main(int argc, char** argv) {
  // gRPC would repeat on standard error what the errors of calls say.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // NOLINT(concurrency-mt-unsafe): no thread runs yet
  kvcompress::KeepFreedMemory();
  const std::span<const char* const> words(argv, static_cast<size_t>(argc));
  return kvcompress::Main(words.subspan(argc > 0 ? 1 : 0));
}
