#include "client/cli/inspect_data.h"

#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/decibels.h"
#include "client/file/block_codecs.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/quality/quality.h"

namespace kvcompress {
namespace {

using Json = nlohmann::ordered_json;

Json FiniteOrNull(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

// Most significant plane first.
Json PlanesJson(const std::vector<double>& entropy) { return std::vector<double>(entropy.rbegin(), entropy.rend()); }

// The figures of a row, by the names that both formats have.
Json Figures(const AnalyzedValues& row) {
  constexpr std::array<const char*, kPercentiles.size()> kNames = {"abs_p50", "abs_p90", "abs_p99", "abs_p99_9"};
  const TensorAnalysis& a = row.figures;
  Json json = {{"elements", a.elements}, {"finite", a.finite}, {"mean", a.mean},
               {"stddev", a.stddev},     {"min", a.min},       {"max", a.max}};
  for (size_t i = 0; i < kNames.size(); ++i) json[kNames[i]] = a.abs_percentiles[i];
  json["exponent_entropy"] = a.exponent_entropy;
  json["plane_entropy"] = PlanesJson(a.plane_entropy);
  json["delta_plane_entropy"] = PlanesJson(a.delta_entropy);
  json["plain_bound"] = FiniteOrNull(a.PlainBound());
  json["delta_bound"] = FiniteOrNull(a.DeltaBound());
  json["best_bound"] = FiniteOrNull(a.BestBound());
  json["channel_outlier"] = a.channel_outlier;
  json["lag1_correlation"] = a.lag1_correlation;
  const bool cast = row.dtype == DType::kF32;
  json["f16_cast_mean_abs_error"] = cast ? Json(a.f16_cast.mean_abs) : Json(nullptr);
  json["f16_cast_max_error"] = cast ? Json(a.f16_cast.max_abs) : Json(nullptr);
  json["f16_cast_too_large"] = cast ? Json(a.f16_cast.overflows) : Json(nullptr);
  json["bf16_cast_mean_abs_error"] = cast ? Json(a.bf16_cast.mean_abs) : Json(nullptr);
  json["bf16_cast_max_error"] = cast ? Json(a.bf16_cast.max_abs) : Json(nullptr);
  json["mean_difference"] = row.unrotated ? Json(row.mean_difference) : Json(nullptr);
  const std::optional<Quality> kept = row.int4 ? std::optional(QualityOf(*row.int4)) : std::nullopt;
  const bool has_constant = kept && kept->token_snr_db;
  json["channel_constant"] = has_constant ? FiniteOrNull(row.int4->max_channel_constant) : Json(nullptr);
  json["int4_snr_db"] = kept ? DecibelsJson(kept->snr_db) : Json(nullptr);
  json["int4_token_snr_db"] = kept ? DecibelsJson(kept->token_snr_db) : Json(nullptr);
  return json;
}

std::string CsvCell(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_array()) {
    return absl::StrJoin(value, " ", [](std::string* out, const Json& one) { absl::StrAppend(out, CsvCell(one)); });
  }
  if (!value.is_string()) return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  const auto& text = value.get_ref<const std::string&>();
  if (text.find_first_of("\",\r\n") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) c == '"' ? quoted += "\"\"" : quoted += c;
  return quoted + "\"";
}

// Rows of objects with the keys of `any`, which name the columns.
std::string Csv(const Json& any, const std::vector<Json>& rows) {
  std::vector<std::string> cells;
  for (const auto& [name, value] : any.items()) cells.push_back(name);
  std::string text = absl::StrJoin(cells, ",") + "\r\n";
  for (const Json& row : rows) {
    cells.clear();
    for (const Json& value : row) cells.push_back(CsvCell(value));
    absl::StrAppend(&text, absl::StrJoin(cells, ","), "\r\n");
  }
  return text;
}

std::string Dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

// With the figures of its values.
Json PlainRow(const AnalyzedValues& row) {
  Json line = {{"tensor", row.tensor},
               {"head", row.head ? Json(*row.head) : Json(nullptr)},
               {"form", row.unrotated ? "unrotated" : "values"},
               {"dtype", DTypeName(row.dtype)}};
  line.update(Figures(row));
  return line;
}

Json CompressedRow(const CompressedTensor& tensor, const BlockCodecs& chosen) {
  const FrameHeader& frame = tensor.frame;
  const std::string& owner = frame.tensor.fingerprint;
  return {{"tensor", tensor.name},
          {"dtype", DTypeName(frame.tensor.dtype)},
          {"shape", frame.tensor.shape},
          {"blocks", frame.block_count()},
          {"bytes", frame.elements * DTypeSize(frame.tensor.dtype)},
          {"compressed_bytes", tensor.bytes},
          {"codec", frame.codec},
          {"block_codecs", chosen.empty() ? Json(nullptr) : Json(chosen)},
          {"fingerprint", owner.empty() ? Json(nullptr) : Json(absl::BytesToHexString(owner))}};
}

struct CompressedRows {
  std::vector<Json> tensors;
  uint64_t bytes = 0;
};

absl::StatusOr<CompressedRows> RowsOf(const CompressedFile& compressed, const ByteSource& file) {
  CompressedRows rows;
  for (const CompressedTensor& tensor : compressed.tensors) {
    const absl::StatusOr<BlockCodecs> chosen = CountBlockCodecs(SubSource(file, tensor.offset, tensor.bytes));
    if (!chosen.ok()) return OfTensor(tensor.name, chosen.status());
    rows.tensors.push_back(CompressedRow(tensor, *chosen));
    rows.bytes += tensor.frame.elements * DTypeSize(tensor.frame.tensor.dtype);
  }
  return rows;
}

}  // namespace

std::string PlainJson(const safetensors::Header& header, uint64_t file_bytes, std::string_view artifact,
                      const FileAnalysis& analysis) {
  Json json = {{"compressed", false},
               {"file_bytes", file_bytes},
               {"metadata", header.metadata},
               {"analyzed_bytes", analysis.bytes},
               {"analyzed_of_bytes", analysis.tensor_bytes},
               {"warnings", analysis.warnings},
               {"tensors", Json::array()}};
  if (!artifact.empty()) json["artifact"] = artifact;
  std::map<std::string, size_t> places;
  for (const safetensors::Entry& entry : header.entries) {
    places[entry.name] = json["tensors"].size();
    json["tensors"].push_back(
        {{"tensor", entry.name}, {"dtype", entry.dtype}, {"shape", entry.shape}, {"bytes", entry.bytes()}});
  }
  for (const AnalyzedValues& row : analysis.rows) {
    Json& tensor = json["tensors"][places[row.tensor]];
    if (row.head && !row.unrotated) tensor["heads"].push_back({{"head", *row.head}});
    Json& holder = row.head ? tensor["heads"].back() : tensor;
    holder[row.unrotated ? "unrotated" : "values"] = Figures(row);
  }
  return Dump(json);
}

std::string PlainCsv(const FileAnalysis& analysis) {
  std::vector<Json> rows;
  for (const AnalyzedValues& row : analysis.rows) rows.push_back(PlainRow(row));
  return Csv(PlainRow({}), rows);
}

absl::StatusOr<std::string> CompressedJson(const CompressedFile& compressed, const ByteSource& file) {
  KVC_ASSIGN_OR_RETURN(const CompressedRows rows, RowsOf(compressed, file));
  return Dump({{"compressed", true},
               {"file_bytes", file.size()},
               {"metadata", compressed.metadata},
               {"codec", compressed.codec},
               {"bytes", rows.bytes},
               {"tensors", rows.tensors}});
}

absl::StatusOr<std::string> CompressedCsv(const CompressedFile& compressed, const ByteSource& file) {
  KVC_ASSIGN_OR_RETURN(const CompressedRows rows, RowsOf(compressed, file));
  return Csv(CompressedRow({}, {}), rows.tensors);
}

}  // namespace kvcompress
