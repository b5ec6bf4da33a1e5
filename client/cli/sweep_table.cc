#include "client/cli/sweep_table.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/cli/printable.h"
#include "client/cli/table.h"
#include "core/quality/quality.h"

namespace kvcompress {
namespace {

using Json = nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;

// Of so few specs none is left out.
constexpr size_t kAllShown = 20;

std::string Label(const Json& spec) {
  return spec["name"].is_null() ? spec["spec"].get<std::string>() : spec["name"].get<std::string>();
}

std::string Decibels(const Json& spec, const char* kind, const char* figure) {
  if (!spec.contains(kind) || !spec[kind].contains(figure)) return "-";
  const Json& part = spec[kind];
  if (!part[figure].is_null()) return FixedText(part[figure].get<double>(), 1);
  return part["max_error"] == 0 ? "exact" : "-";
}

std::string Speed(double gb_per_s) { return absl::StrFormat("%.*f", gb_per_s < 10 ? 2 : 1, gb_per_s); }

std::string Bandwidth(const Json& pays_below, const char* way) {
  const double bytes = pays_below[way]["serial"];
  return bytes > 0 ? Speed(bytes / 1e9) : "never";
}

std::string Milliseconds(const Json& seconds) {
  const double exact = 1e3 * seconds.get<double>();
  const double ms = std::abs(exact) < 0.005 ? 0 : exact;
  return absl::StrFormat("%.*f", std::abs(ms) < 10 ? 2 : std::abs(ms) < 100 ? 1 : 0, ms);
}

std::string Text(const Rows& rows) {
  // Codecs, which may be long, are the last column.
  std::vector<bool> right(rows[0].size(), true);
  right.back() = false;
  return FormatTable(rows, right);
}

std::vector<const Json*> ShownSpecs(const Json& summary) {
  std::vector<const Json*> shown;
  for (const Json& spec : summary["specs"]) {
    const Json& fronts = spec["pareto"];
    const bool is_best = std::ranges::find(fronts, "all") != fronts.end();
    if (!spec["name"].is_null() || is_best || summary["specs"].size() <= kAllShown) shown.push_back(&spec);
  }
  std::ranges::stable_sort(shown, std::ranges::greater(),
                           [](const Json* spec) { return (*spec)["compression_ratio"].get<double>(); });
  return shown;
}

std::string CodecTable(const std::vector<const Json*>& specs) {
  Rows rows = {{"ratio", "bits", "keys dB", "values dB", "encode GB/s", "decode GB/s", "store pays below", "load",
                "both", "codec"}};
  for (const Json* spec : specs) {
    const Json& below = (*spec)["pays_below_bytes_per_second"];
    rows.push_back({absl::StrFormat("%.2f", (*spec)["compression_ratio"].get<double>()),
                    absl::StrFormat("%.2f", (*spec)["bits_per_value"].get<double>()),
                    Decibels(*spec, "keys", "token_snr_db"), Decibels(*spec, "values", "snr_db"),
                    Speed((*spec)["encode_gb_per_s"]), Speed((*spec)["decode_gb_per_s"]), Bandwidth(below, "store"),
                    Bandwidth(below, "load"), Bandwidth(below, "both"), Label(*spec)});
  }
  return Text(rows);
}

std::string LinkTable(const Json& summary, size_t link, const std::vector<const Json*>& specs) {
  const Json& about = summary["links"][link];
  Rows rows = {{"store chunk", "pipelined", "load chunk", "pipelined", "first token sooner by", "pipelined", "codec"}};
  const std::string uncompressed = Milliseconds(about["uncompressed_chunk_seconds"]);
  rows.push_back({uncompressed, "", uncompressed, "", "", "", "uncompressed"});
  for (const Json* spec : specs) {
    const Json& at = (*spec)["links"][link];
    std::vector<std::string> row;
    for (const char* figure : {"store_chunk_seconds", "load_chunk_seconds", "saved_first_token_seconds"}) {
      for (const char* way : {"serial", "pipelined"}) row.push_back(Milliseconds(at[figure][way]));
    }
    row.push_back(Label(*spec));
    rows.push_back(std::move(row));
  }
  return absl::StrFormat(
             "\n%s (%s GB/s), milliseconds: %d tokens take %s uncompressed\n", about["bandwidth"].get<std::string>(),
             absl::StrFormat("%.4g", about["bytes_per_second"].get<double>() / 1e9),
             summary["context_tokens"].get<uint64_t>(), Milliseconds(about["uncompressed_context_seconds"])) +
         Text(rows);
}

}  // namespace

std::string SweepTable(const Json& summary) {
  const std::vector<const Json*> specs = ShownSpecs(summary);
  const auto threads = summary["threads"].get<uint64_t>();
  std::string text = absl::StrFormat(
      "%s: %d tensors, %.2f MB%s; %d thread%s, memcpy %s GB/s\n\n", Printable(summary["input"].get<std::string>()),
      summary["tensors"].get<uint64_t>(), summary["original_size_bytes"].get<double>() / 1e6,
      summary["sampled"].get<bool>()
          ? absl::StrFormat(", of which %.2f are measured", summary["measured_size_bytes"].get<double>() / 1e6)
          : "",
      threads, threads == 1 ? "" : "s", Speed(summary["memcpy_gb_per_s"]));
  text += CodecTable(specs);
  text +=
      "\nKeys by token SNR, values by SNR. Pays below: a link of less than so many GB/s takes less time with the codec "
      "than\n"
      "without, where codec and link work one after the other. Pipelined, where both work at once, the limit for "
      "storing\n"
      "and for loading is the speed of the codec.\n";
  if (!summary.contains("links")) return text;
  absl::StrAppendFormat(&text, "\nA token has %.0f bytes, a chunk %d tokens.\n",
                        summary["bytes_per_token"].get<double>(), summary["chunk_tokens"].get<uint64_t>());
  for (size_t link = 0; link < summary["links"].size(); ++link) text += LinkTable(summary, link, specs);
  return text;
}

}  // namespace kvcompress
