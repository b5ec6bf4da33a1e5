#include "client/cli/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/analysis_table.h"
#include "client/cli/constants_warning.h"
#include "client/cli/decibels.h"
#include "client/cli/inspect_data.h"
#include "client/cli/printable.h"
#include "client/cli/rotary_report.h"
#include "client/cli/table.h"
#include "core/artifact/artifact_file.h"
#include "core/base/status_macros.h"
#include "core/codec/chain_spec.h"
#include "core/codec/registry.h"
#include "core/file/compressed_file.h"
#include "core/quality/quality.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {
namespace {

using Json = nlohmann::ordered_json;

double Ratio(uint64_t original, uint64_t compressed) {
  return compressed == 0 ? 0 : static_cast<double>(original) / static_cast<double>(compressed);
}

// The formula of the reference's manual, for FP16 values, INT4 codes and an FP16 scale a group, without headers.
Json TheoreticalRatio(const std::string& codec) {
  const absl::StatusOr<ChainSpec> spec = ChainSpec::ParseStages(codec);
  if (!spec.ok() || spec->stages().size() != 1 || spec->tensor_codec().codec->name != "int4") return nullptr;
  const double g = spec->tensor_codec().Number("group");
  return 4 * g / (g + 4);
}

// Appends without a search for each key, which an ordered object would do from its beginning: all keys differ.
Json TensorMetrics(const FileReport& report) {
  Json metrics = Json::object();
  auto& fields = metrics.get_ref<Json::object_t&>();
  for (size_t i = 0; i < report.tensors.size(); ++i) {
    const TensorReport& tensor = report.tensors[i];
    const std::string& name = tensor.tensor.name;
    if (tensor.passed_through) {
      fields.emplace_back(name + "_passed_through", true);
      continue;
    }
    const Quality quality = QualityOf(tensor.sums, KindOf(tensor.tensor.name));
    fields.emplace_back(name + "_rmse", quality.rmse);
    fields.emplace_back(name + "_snr_db", DecibelsJson(quality.snr_db));
    if (tensor.sums.token_count > 0) fields.emplace_back(name + "_token_snr_db", DecibelsJson(quality.token_snr_db));
    fields.emplace_back(name + "_cosine_similarity", quality.cosine_similarity);
    fields.emplace_back(name + "_max_error", quality.max_error);
    if (!tensor.policy.empty()) fields.emplace_back(name + "_policy", tensor.policy);
    if (tensor.nonfinite_blocks > 0) fields.emplace_back(name + "_nonfinite_blocks", tensor.nonfinite_blocks);
    if (tensor.sums.rotary.values > 0) fields.emplace_back(name + "_rotary", RotaryGainJson(tensor.sums.rotary));
    if (i < report.block_codecs.size() && !report.block_codecs[i].empty()) {
      fields.emplace_back(name + "_codecs", report.block_codecs[i]);
    }
  }
  return metrics;
}

void AddQuality(const QualityMerger& merger, Json& json) {
  const Quality mean = merger.Mean();
  json["rmse"] = mean.rmse;
  json["snr_db"] = DecibelsJson(mean.snr_db);
  json["cosine_similarity"] = mean.cosine_similarity;
  json["max_error"] = mean.max_error;
  if (const std::optional<QualityLevel> level = merger.Level()) json["quality_level"] = QualityLevelName(*level);
}

void AddVerdict(const QualityMerger& merger, Json& json) {
  const std::vector<Violation> violations = merger.Violations();
  json["quality_passed"] = violations.empty();
  json["violations"] = Json::array();
  for (const Violation& violation : violations) json["violations"].push_back(violation.text);
}

void AddHiddenQuality(const QualityMerger& merger, Json& json) {
  const Quality mean = merger.Mean();
  const Quality total = merger.ElementWeighted();
  json["token_snr_db"] = DecibelsJson(mean.token_snr_db);
  json["judged_snr_db"] = DecibelsJson(merger.JudgedSnrDb());
  json["mean_abs_error"] = mean.mean_abs_error;
  json["worst_tensor"] = merger.worst_tensor();
  json["element_weighted"] = {{"rmse", total.rmse},
                              {"mean_abs_error", total.mean_abs_error},
                              {"snr_db", DecibelsJson(total.snr_db)},
                              {"token_snr_db", DecibelsJson(total.token_snr_db)},
                              {"cosine_similarity", total.cosine_similarity},
                              {"max_error", total.max_error}};
}

// Decompression has no original to compare with.
void AddUnknownQuality(Json& json) {
  for (const char* key : {"rmse", "snr_db", "cosine_similarity", "max_error"}) json[key] = nullptr;
  json["quality_level"] = "UNKNOWN";
}

std::string ShapeText(const std::vector<uint64_t>& shape) { return absl::StrFormat("[%s]", absl::StrJoin(shape, ",")); }

std::string MetadataText(const std::map<std::string, std::string>& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    absl::StrAppendFormat(&text, "metadata %s: %s\n", Printable(key), Printable(value));
  }
  return text;
}

std::string DescribePlain(const safetensors::Header& header, uint64_t file_bytes) {
  std::vector<std::vector<std::string>> rows = {{"tensor", "dtype", "shape", "bytes"}};
  uint64_t bytes = 0;
  for (const safetensors::Entry& entry : header.entries) {
    rows.push_back({Printable(entry.name), entry.dtype, ShapeText(entry.shape), absl::StrFormat("%d", entry.bytes())});
    bytes += entry.bytes();
  }
  return FormatTable(rows, {false, false, false, true}) +
         absl::StrFormat("total: %d tensors, %d bytes, file of %d bytes, not compressed\n", header.entries.size(),
                         bytes, file_bytes) +
         MetadataText(header.metadata);
}

absl::StatusOr<std::string> DescribeCompressed(const CompressedFile& compressed, const ByteSource& file) {
  std::vector<std::vector<std::string>> rows = {
      {"tensor", "dtype", "shape", "blocks", "bytes", "compressed", "ratio", "codec"}};
  uint64_t original = 0;
  for (const CompressedTensor& tensor : compressed.tensors) {
    const FrameHeader& frame = tensor.frame;
    const std::string& owner = frame.tensor.fingerprint;
    const uint64_t bytes = frame.elements * DTypeSize(frame.tensor.dtype);
    const absl::StatusOr<BlockCodecs> chosen = CountBlockCodecs(SubSource(file, tensor.offset, tensor.bytes));
    if (!chosen.ok()) return OfTensor(tensor.name, chosen.status());
    rows.push_back({Printable(tensor.name), std::string(DTypeName(frame.tensor.dtype)), ShapeText(frame.tensor.shape),
                    absl::StrFormat("%d", frame.block_count()), absl::StrFormat("%d", bytes),
                    absl::StrFormat("%d", tensor.bytes), absl::StrFormat("%.3f", Ratio(bytes, tensor.bytes)),
                    absl::StrCat(frame.codec, chosen->empty() ? "" : ": ", BlockCodecsText(*chosen),
                                 owner.empty() ? "" : ", fingerprint ", absl::BytesToHexString(owner))});
    original += bytes;
  }
  return FormatTable(rows, {false, false, false, true, true, true, true, false}) +
         absl::StrFormat("total: %d tensors, %d bytes, compressed file of %d bytes, ratio %.3f, codec %s\n",
                         compressed.tensors.size(), original, file.size(), Ratio(original, file.size()),
                         compressed.codec) +
         MetadataText(compressed.metadata);
}

// About tensors that are neither keys nor values and that the codec of these has changed; empty without any.
std::string OthersWarning(const FileReport& report) {
  const TensorReport* first = nullptr;
  size_t count = 0;
  for (const TensorReport& tensor : report.tensors) {
    if (tensor.policy != "default" || tensor.sums.max_abs_error == 0) continue;
    if (count++ == 0) first = &tensor;
  }
  if (first == nullptr) return "";
  const std::string name = Printable(first->tensor.name);
  constexpr const char* kInstead = "with -profile such tensors are lossless unless it says otherwise";
  if (count == 1) {
    return absl::StrFormat("tensor %s is neither key nor value by its name, and %s changed it; %s", name, first->codec,
                           kInstead);
  }
  return absl::StrFormat("tensor %s and %d more are neither keys nor values by their names, and %s changed them; %s",
                         name, count - 1, first->codec, kInstead);
}

}  // namespace

std::string ReportJson(const FileReport& report, bool with_quality, bool per_tensor, double milliseconds) {
  QualityMerger merger;
  uint64_t elements = 0;
  uint64_t passed_through = 0;
  uint64_t passed_through_bytes = 0;
  for (const TensorReport& tensor : report.tensors) {
    merger.Add(tensor.tensor.name, tensor.sums);
    elements += tensor.elements;
    if (!tensor.passed_through) continue;
    ++passed_through;
    passed_through_bytes += tensor.tensor_bytes;
  }
  Json json;
  json["compression_ratio"] = Ratio(report.tensor_bytes, report.compressed_bytes);
  json["original_size_bytes"] = report.tensor_bytes;
  json["compressed_size_bytes"] = report.compressed_bytes;
  with_quality ? AddQuality(merger, json) : AddUnknownQuality(json);
  json["processing_time_ms"] = milliseconds;
  json["quality_passed"] = nullptr;
  json["violations"] = Json::array();
  if (with_quality) AddVerdict(merger, json);
  if (per_tensor) json["tensor_metrics"] = with_quality ? TensorMetrics(report) : Json::object();
  if (with_quality) {
    AddHiddenQuality(merger, json);
    json["warnings"] = ReportWarnings(report);
  }
  json["codec"] = report.codec;
  if (with_quality) json["rotary"] = RotaryJson(report);
  json["theoretical_ratio"] = TheoreticalRatio(report.codec);
  const double bits = 8 * static_cast<double>(report.compressed_bytes);
  json["bits_per_value"] = elements == 0 ? Json(nullptr) : Json(bits / static_cast<double>(elements));
  json["tensors"] = report.tensors.size();
  json["elements"] = elements;
  json["passed_through_tensors"] = passed_through;
  json["passed_through_bytes"] = passed_through_bytes;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<std::string> ReportWarnings(const FileReport& report) {
  std::vector<MeasuredTensor> measured;
  measured.reserve(report.tensors.size());
  for (const TensorReport& tensor : report.tensors) {
    measured.push_back({tensor.tensor.name, tensor.codec, tensor.sums});
  }
  std::vector<std::string> warnings = ConstantsWarnings(measured);
  if (std::string others = OthersWarning(report); !others.empty()) warnings.push_back(std::move(others));
  if (std::string rotary = RotaryWarning(report); !rotary.empty()) warnings.push_back(std::move(rotary));
  return warnings;
}

std::vector<std::string> ProfileWarnings(const Profile& profile, const FileReport& report) {
  std::set<int64_t> layers;
  for (const TensorReport& tensor : report.tensors) layers.insert(ParseKvName(tensor.tensor.name).layer);
  layers.erase(-1);
  if (profile.asks_for_layers() && layers.empty()) {
    return {"no tensor is named layer_{i}_key or layer_{i}_value: rules about layers and kinds hold for none"};
  }
  const auto is_in_file = [&](int64_t layer) { return layers.contains(layer); };
  if (profile.ranks() != nullptr && std::ranges::none_of(profile.ranks()->layers(), is_in_file)) {
    return {"the config lists no head of a layer that the file has: all heads are kept whole"};
  }
  return {};
}

absl::StatusOr<Inspection> Inspect(const Input& file, const InspectOptions& options) {
  const safetensors::Header& header = file.header();
  if (!IsCompressedFile(header)) {
    KVC_ASSIGN_OR_RETURN(const FileAnalysis analysis, AnalyzeFile(file, header, options.analysis));
    ArtifactId artifact;
    if (header.metadata.contains(std::string(kArtifactKey))) {
      KVC_ASSIGN_OR_RETURN(artifact, ArtifactIdOf(file));
    }
    switch (options.format) {
      case InspectFormat::kJson:
        return Inspection{PlainJson(header, file.size(), artifact, analysis), analysis.warnings};
      case InspectFormat::kCsv: return Inspection{PlainCsv(analysis), analysis.warnings};
      case InspectFormat::kTable: break;
    }
    const std::string title = artifact.empty() ? "" : absl::StrFormat("artifact %s\n\n", artifact);
    return Inspection{title + DescribePlain(header, file.size()) + AnalysisTables(analysis), analysis.warnings};
  }
  const std::string_view unfit = options.analysis.rotary.theta != 0 ? "-rope-theta"
                                 : options.analysis.per_head        ? "-per-head"
                                                                    : "";
  if (!unfit.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is for plain files, and this one is compressed", unfit));
  }
  KVC_ASSIGN_OR_RETURN(const CompressedFile compressed, ReadCompressedFile(file, header));
  absl::StatusOr<std::string> text = options.format == InspectFormat::kJson  ? CompressedJson(compressed, file)
                                     : options.format == InspectFormat::kCsv ? CompressedCsv(compressed, file)
                                                                             : DescribeCompressed(compressed, file);
  if (!text.ok()) return text.status();
  return Inspection{.text = *std::move(text)};
}

}  // namespace kvcompress
