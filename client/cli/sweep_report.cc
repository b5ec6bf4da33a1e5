#include "client/cli/sweep_report.h"

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_format.h"
#include "client/cli/decibels.h"
#include "client/cli/pareto.h"
#include "client/cli/rotary_report.h"
#include "client/cli/sweep_page.h"
#include "client/cli/sweep_table.h"
#include "core/base/status_macros.h"
#include "core/codec/named_chains.h"
#include "core/file/plain_file.h"
#include "core/quality/quality.h"

namespace kvcompress {
namespace {

using Json = nlohmann::ordered_json;

// Tensors that are shown together.
enum class Kind { kAll, kKeys, kValues, kOther };
constexpr std::array kKinds = {Kind::kAll, Kind::kKeys, Kind::kValues, Kind::kOther};
constexpr std::array<std::string_view, kKinds.size()> kKindNames = {"all", "keys", "values", "other"};

std::string_view KindName(Kind kind) { return kKindNames[static_cast<size_t>(kind)]; }

Kind GroupOf(const TensorDesc& tensor) {
  switch (KindOf(tensor.name)) {
    case TensorKind::kOther: return Kind::kOther;
    case TensorKind::kKey: return Kind::kKeys;
    case TensorKind::kValue: return Kind::kValues;
  }
  return Kind::kOther;
}

double Divided(double a, double b) { return b > 0 ? a / b : 0; }

// The figures of one spec for the tensors of a kind.
struct KindFigures {
  size_t tensors = 0;
  double bits_per_value = 0;
  Quality quality;  // means over the tensors, as the command line reports them

  // Without an SNR no point is on a front.
  RatePoint point(Kind kind) const {
    const bool by_tokens = kind == Kind::kKeys && quality.token_snr_db;
    const std::optional<double> snr_db = by_tokens ? quality.token_snr_db : quality.snr_db;
    return {bits_per_value, snr_db.value_or(-kInfiniteSnrDb)};
  }
};

KindFigures FiguresOf(const FileSample& sample, const SpecFigures& spec, Kind kind) {
  KindFigures figures;
  QualityMerger merger;
  uint64_t elements = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < sample.tensors.size(); ++i) {
    const SampledTensor& tensor = sample.tensors[i];
    if (kind != Kind::kAll && GroupOf(tensor.tensor) != kind) continue;
    ++figures.tensors;
    elements += tensor.values.size() / DTypeSize(tensor.tensor.dtype);
    bytes += spec.tensors[i].frame_bytes;
    merger.Add(tensor.tensor.name, spec.tensors[i].sums);
  }
  if (kind == Kind::kAll) bytes = spec.compressed_bytes;
  figures.bits_per_value = Divided(8 * static_cast<double>(bytes), static_cast<double>(elements));
  figures.quality = merger.Mean();
  return figures;
}

Json ToJson(const KindFigures& figures) {
  Json json = {{"bits_per_value", figures.bits_per_value}, {"snr_db", DecibelsJson(figures.quality.snr_db)}};
  if (figures.quality.token_snr_db) json["token_snr_db"] = DecibelsJson(figures.quality.token_snr_db);
  json["cosine_similarity"] = figures.quality.cosine_similarity;
  json["mean_abs_error"] = figures.quality.mean_abs_error;
  json["rmse"] = figures.quality.rmse;
  json["max_error"] = figures.quality.max_error;
  return json;
}

// A chunk of tokens, as caches are stored and looked up by.
constexpr uint64_t kChunkTokens = 256;

Json ToJson(const BothWays& figures) { return {{"serial", figures.serial}, {"pipelined", figures.pipelined}}; }

// What a context takes, and what it takes to send it uncompressed.
void AddContext(const SweepResult& result, Json& json) {
  if (result.links.empty()) return;
  const double chunk_bytes = result.bytes_per_token * kChunkTokens;
  const double context_bytes = result.bytes_per_token * static_cast<double>(result.context_tokens);
  json["bytes_per_token"] = result.bytes_per_token;
  json["chunk_tokens"] = kChunkTokens;
  json["context_tokens"] = result.context_tokens;
  json["links"] = Json::array();
  for (const Link& link : result.links) {
    json["links"].push_back({{"bandwidth", link.text},
                             {"bytes_per_second", link.bandwidth},
                             {"uncompressed_chunk_seconds", chunk_bytes / link.bandwidth},
                             {"uncompressed_context_seconds", context_bytes / link.bandwidth}});
  }
}

// Below which bandwidths a codec pays, and what it does on the links that were given.
void AddBreakEven(const SweepResult& result, const CodecFigures& codec, Json& json) {
  const BreakEven at = BreakEvenOf(codec);
  json["pays_below_bytes_per_second"] = {
      {"store", ToJson(at.store)}, {"load", ToJson(at.load)}, {"both", ToJson(at.both)}};
  if (result.links.empty()) return;
  const double chunk_bytes = result.bytes_per_token * kChunkTokens;
  const double context_bytes = result.bytes_per_token * static_cast<double>(result.context_tokens);
  json["links"] = Json::array();
  for (const Link& link : result.links) {
    const double uncompressed = context_bytes / link.bandwidth;
    const BothWays load = LoadSeconds(codec, context_bytes, link.bandwidth);
    const BothWays saved = {.serial = uncompressed - load.serial, .pipelined = uncompressed - load.pipelined};
    json["links"].push_back({{"bandwidth", link.text},
                             {"store_chunk_seconds", ToJson(StoreSeconds(codec, chunk_bytes, link.bandwidth))},
                             {"load_chunk_seconds", ToJson(LoadSeconds(codec, chunk_bytes, link.bandwidth))},
                             {"saved_first_token_seconds", ToJson(saved)}});
  }
}

Json SpecJson(const FileSample& sample, const SweepResult& result, const SpecFigures& spec) {
  const auto bytes = static_cast<double>(sample.bytes);
  const CodecFigures codec = {.ratio = Divided(bytes, static_cast<double>(spec.compressed_bytes)),
                              .encode = Divided(bytes, spec.encode_seconds),
                              .decode = Divided(bytes, spec.decode_seconds)};
  Json json;
  json["spec"] = spec.spec;
  const std::string_view name = NameOfChain(spec.spec);
  json["name"] = name.empty() ? Json(nullptr) : Json(name);
  json["compression_ratio"] = codec.ratio;
  json.update(ToJson(FiguresOf(sample, spec, Kind::kAll)));
  for (const Kind kind : {Kind::kKeys, Kind::kValues, Kind::kOther}) {
    const KindFigures figures = FiguresOf(sample, spec, kind);
    if (figures.tensors > 0) json[std::string(KindName(kind))] = ToJson(figures);
  }
  json["encode_gb_per_s"] = codec.encode / 1e9;
  json["decode_gb_per_s"] = codec.decode / 1e9;
  AddBreakEven(result, codec, json);
  json["pareto"] = Json::array();
  json["command"] = SweepCommand(result.input, spec.spec, result.flags);
  return json;
}

// Names, for each spec, the kinds on whose front it is.
void AddPareto(const FileSample& sample, const SweepResult& result, Json& specs) {
  for (const Kind kind : kKinds) {
    std::vector<RatePoint> points;
    for (const SpecFigures& spec : result.specs) {
      const KindFigures figures = FiguresOf(sample, spec, kind);
      if (figures.tensors > 0) points.push_back(figures.point(kind));
    }
    const std::vector<bool> front = ParetoFront(points);
    for (size_t i = 0; i < front.size(); ++i) {
      if (front[i]) specs[i]["pareto"].push_back(KindName(kind));
    }
  }
}

bool KeepsLimits(const FileSample& sample, const SpecFigures& spec, const SweepLimits& limits) {
  const auto keeps = [&](Kind kind, double max_mae, double min_cosine) {
    const KindFigures figures = FiguresOf(sample, spec, kind);
    if (figures.tensors == 0) return true;
    return (max_mae == 0 || figures.quality.mean_abs_error <= max_mae) &&
           figures.quality.cosine_similarity >= min_cosine;
  };
  return keeps(Kind::kKeys, limits.max_key_mae, limits.min_key_cosine) &&
         keeps(Kind::kValues, limits.max_value_mae, limits.min_value_cosine);
}

// Says of each spec whether it keeps the limits, and which of those is the smallest.
void AddLimits(const FileSample& sample, const SweepResult& result, Json& json) {
  const SweepLimits& limits = result.limits;
  if (!limits.any()) return;
  json["limits"] = {{"max_key_mae", limits.max_key_mae > 0 ? Json(limits.max_key_mae) : Json(nullptr)},
                    {"max_value_mae", limits.max_value_mae > 0 ? Json(limits.max_value_mae) : Json(nullptr)},
                    {"min_key_cosine", limits.min_key_cosine > 0 ? Json(limits.min_key_cosine) : Json(nullptr)},
                    {"min_value_cosine", limits.min_value_cosine > 0 ? Json(limits.min_value_cosine) : Json(nullptr)}};
  const SpecFigures* best = nullptr;
  for (size_t i = 0; i < result.specs.size(); ++i) {
    const SpecFigures& spec = result.specs[i];
    const bool keeps = KeepsLimits(sample, spec, limits);
    json["specs"][i]["within_limits"] = keeps;
    if (keeps && (best == nullptr || spec.compressed_bytes < best->compressed_bytes)) best = &spec;
  }
  json["smallest_within_limits"] = best == nullptr ? Json(nullptr) : Json(best->spec);
}

Json SummaryJson(const FileSample& sample, const SweepResult& result) {
  Json json;
  json["input"] = result.input;
  json["tensors"] = sample.tensors.size();
  json["original_size_bytes"] = sample.file_bytes;
  json["measured_size_bytes"] = sample.bytes;
  json["sampled"] = !sample.whole();
  json["threads"] = result.threads;
  json["memcpy_gb_per_s"] = Divided(static_cast<double>(sample.bytes) / 1e9, result.copy_seconds);
  json["rotary"] = result.rotary ? RotaryJson(*result.rotary) : Json(nullptr);
  AddContext(result, json);
  json["specs"] = Json::array();
  for (const SpecFigures& spec : result.specs) json["specs"].push_back(SpecJson(sample, result, spec));
  AddPareto(sample, result, json["specs"]);
  AddLimits(sample, result, json);
  json["refused"] = Json::array();
  for (const auto& [spec, why] : result.refused) json["refused"].push_back({{"spec", spec}, {"error", why}});
  return json;
}

// For the heat map: each tensor's name, layer and kind, and each spec's figures of it.
void AddTensors(const FileSample& sample, const SweepResult& result, Json& json) {
  json["tensor_list"] = Json::array();
  for (const SampledTensor& tensor : sample.tensors) {
    json["tensor_list"].push_back({{"name", tensor.tensor.name},
                                   {"kind", KindName(GroupOf(tensor.tensor))},
                                   {"layer", ParseKvName(tensor.tensor.name).layer}});
  }
  for (size_t i = 0; i < result.specs.size(); ++i) {
    Json snr = Json::array();
    Json relative = Json::array();
    for (size_t k = 0; k < sample.tensors.size(); ++k) {
      const TensorFigures& tensor = result.specs[i].tensors[k];
      const Quality quality = QualityOf(tensor.sums, KindOf(sample.tensors[k].tensor.name));
      const std::optional<double> judged = quality.JudgedSnrDb();
      snr.push_back(judged ? DecibelsJson(judged) : Json("none"));
      relative.push_back(std::sqrt(Divided(tensor.sums.sum_error_squares, tensor.sums.sum_squares)));
    }
    json["specs"][i]["tensor_snr_db"] = std::move(snr);
    json["specs"][i]["tensor_relative_rmse"] = std::move(relative);
  }
}

std::string Dump(const Json& json, int indent) { return json.dump(indent, ' ', false, Json::error_handler_t::replace); }

}  // namespace

absl::StatusOr<double> BytesPerToken(const safetensors::Header& header) {
  double sum = 0;
  for (const safetensors::Entry& entry : header.entries) {
    KVC_ASSIGN_OR_RETURN(const TensorDesc tensor, DescribeEntry(entry));
    KVC_RETURN_IF_ERROR(ValidateTensor(tensor).status());
    double tokens = 0;
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      if (tensor.axes[axis] == AxisRole::kSeq) tokens = static_cast<double>(tensor.shape[axis] * tensor.shape[0]);
    }
    sum += Divided(static_cast<double>(entry.bytes()), tokens);
  }
  if (sum > 0) return sum;
  return absl::InvalidArgumentError(
      "-bandwidth counts the bytes of a token, and no tensor is named layer_{i}_key or layer_{i}_value and of rank 4 "
      "with "
      "a token in it");
}

std::string ShellWord(std::string_view text) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,+%@";
  if (!text.empty() && text.find_first_not_of(kPlain) == text.npos) return std::string(text);
  std::string word = "'";
  for (const char c : text) c == '\'' ? word += R"('\'')" : word += c;
  return word + "'";
}

std::string SweepCommand(std::string_view input, std::string_view spec, std::string_view flags) {
  return absl::StrFormat("kv-compress -codec %s%s -input %s -output small.safetensors", ShellWord(spec), flags,
                         ShellWord(input));
}

std::string EscapeForScript(std::string_view json) {
  std::string escaped;
  escaped.reserve(json.size());
  for (const char c : json) {
    const bool is_markup = c == '<' || c == '>' || c == '&';
    escaped += is_markup ? absl::StrFormat("\\u%04x", c) : std::string(1, c);
  }
  return escaped;
}

SweepReport MakeSweepReport(const FileSample& sample, const SweepResult& result) {
  Json json = SummaryJson(sample, result);
  SweepReport report{.json = Dump(json, 2) + "\n", .table = SweepTable(json), .html = {}};
  AddTensors(sample, result, json);
  report.html = SweepPageBeforeData();
  report.html += EscapeForScript(Dump(json, -1));
  report.html += SweepPageAfterData();
  return report;
}

}  // namespace kvcompress
