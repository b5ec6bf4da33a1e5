#include "client/cli/constants_warning.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/printable.h"
#include "core/base/tensor.h"
#include "core/quality/quality.h"

namespace kvcompress {
namespace {

// An SNR higher than the token SNR by this: the constants are most of the variance.
constexpr double kDominated = 6;  // dB

// What one codec has lost.
struct Loss {
  std::set<int64_t> layers;         // of keys
  std::vector<std::string> others;  // names
  Quality worst = {.token_snr_db = kInfiniteSnrDb};
  double constant = 0;
};

bool IsLost(const Quality& quality) {
  return quality.kind != TensorKind::kValue && quality.token_snr_db && quality.snr_db &&
         *quality.token_snr_db < Thresholds().min_snr_db && *quality.snr_db >= *quality.token_snr_db + kDominated;
}

// "0-3, 5".
std::string RangesText(const std::set<int64_t>& numbers) {
  std::vector<std::string> ranges;
  for (auto first = numbers.begin(); first != numbers.end();) {
    auto last = first;
    auto next = std::next(first);
    while (next != numbers.end() && *next == *last + 1) last = next++;
    ranges.push_back(first == last ? absl::StrFormat("%d", *first) : absl::StrFormat("%d-%d", *first, *last));
    first = next;
  }
  return absl::StrJoin(ranges, ", ");
}

std::string WhoText(const Loss& loss) {
  constexpr size_t kMaxNames = 3;
  std::vector<std::string> who;
  if (!loss.layers.empty()) {
    who.push_back(absl::StrFormat("keys of layer%s %s", loss.layers.size() > 1 ? "s" : "", RangesText(loss.layers)));
  }
  if (const size_t count = loss.others.size(); count > 0) {
    const auto names = std::span(loss.others).first(std::min(count, kMaxNames));
    who.push_back(absl::StrFormat("tensor%s %s", count > 1 ? "s" : "", absl::StrJoin(names, ", ")));
    if (count > kMaxNames) who.back() += absl::StrFormat(" and %d more", count - kMaxNames);
  }
  return absl::StrJoin(who, " and ");
}

std::string WarningText(std::string_view codec, const Loss& loss) {
  return absl::StrFormat(
      "%s have channels whose constant is up to %.3g times their deviation: %s loses them (token SNR %s dB, SNR "
      "%s dB); kv4, quant(bits=4,per=channel,symmetric=false) or -min-snr keep them",
      WhoText(loss), loss.constant, codec, FixedText(*loss.worst.token_snr_db, 1), FixedText(*loss.worst.snr_db, 1));
}

}  // namespace

std::vector<std::string> ConstantsWarnings(std::span<const MeasuredTensor> tensors) {
  std::map<std::string_view, Loss> losses;
  for (const MeasuredTensor& tensor : tensors) {
    const Quality quality = QualityOf(tensor.sums, KindOf(tensor.name));
    if (!IsLost(quality)) continue;
    Loss& loss = losses[tensor.codec];
    if (quality.kind == TensorKind::kKey) {
      loss.layers.insert(ParseKvName(tensor.name).layer);
    } else {
      loss.others.push_back(Printable(tensor.name));
    }
    if (*quality.token_snr_db < *loss.worst.token_snr_db) loss.worst = quality;
    loss.constant = std::max(loss.constant, tensor.sums.max_channel_constant);
  }
  std::vector<std::string> warnings;
  warnings.reserve(losses.size());
  for (const auto& [codec, loss] : losses) warnings.push_back(WarningText(codec, loss));
  return warnings;
}

}  // namespace kvcompress
