#include "core/codec/chain_spec.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/float_environment.h"
#include "core/base/status_macros.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "core/codec/syntax.h"

namespace kvcompress {

struct ChainSpec::Parsed {
  std::string text;
  std::vector<StageSpec> stages;
  size_t tensor_codec = 0;  // among the stages
  // Of a name that means different chains, which has no stages.
  int64_t first_layers = 0;
  ChainSpec of_first_layers, of_values, of_others;
};

namespace {

constexpr size_t kMaxStages = 8;
constexpr uint64_t kMaxHead = 65535;

// How many letters must be put in, left out or replaced to make the one of the other.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // of what is before a letter of `a`, to each beginning of `b`
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

// " (similar: A, B)": the codecs and names that are nearest to this one; empty where none is near.
std::string SimilarNames(std::string_view name) {
  constexpr size_t kMostEdits = 2;
  std::vector<std::string_view> known;
  for (const CodecRow* row : AllCodecs()) known.push_back(row->name);
  for (const NamedChain& named : AllNamedChains()) {
    if (FindCodec(named.name) == nullptr) known.push_back(named.name);
  }
  std::vector<std::string> nearest;
  size_t least = std::min(kMostEdits + 1, name.size());
  for (const std::string_view other : known) {
    if (name.size() > other.size() + kMostEdits) continue;
    const size_t edits = EditDistance(name, other);
    if (edits > least || edits > kMostEdits || edits >= name.size()) continue;
    if (edits < least) nearest.clear();
    least = edits;
    nearest.emplace_back(other);
  }
  return nearest.empty() ? "" : absl::StrFormat(" (similar: %s)", absl::StrJoin(nearest, ", "));
}

absl::Status UnknownCodec(const std::string& name) {
  if (const NamedChain* named = FindNamedChain(name)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("\"%s\" stands for a whole codec spec, %s, not for a part of one", name, named->chain));
  }
  if (name == kKv.name) {
    return absl::InvalidArgumentError(
        absl::StrFormat("\"%s\" stands for a whole codec spec, not for a part of one", name));
  }
  return absl::InvalidArgumentError(absl::StrFormat("unknown codec \"%s\"%s", name, SimilarNames(name)));
}

absl::Status BadRange(std::string_view codec, std::string_view range) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: \"%s\" is not the next range of heads (0-3, 4, 5-: without gaps, from 0 on, the last one "
                      "open, none above %d)",
                      codec, range, kMaxHead));
}

// "first-last", "first" or "first-", which must begin with `expected`; returns the head after it, 0 after the last.
absl::StatusOr<uint64_t> ParseRange(std::string_view codec, std::string_view range, uint64_t expected, bool is_last) {
  const auto number = [](std::string_view text) -> std::optional<uint64_t> {
    uint64_t value = 0;
    if (!absl::SimpleAtoi(absl::string_view(text.data(), text.size()), &value) || value > kMaxHead) return {};
    return value;
  };
  const size_t dash = range.find('-');
  const std::optional<uint64_t> first = number(range.substr(0, dash));
  const bool is_open = dash != range.npos && dash + 1 == range.size();
  if (first != expected || is_open != is_last) return BadRange(codec, range);
  if (is_open) return 0;
  const std::optional<uint64_t> last = dash == range.npos ? first : number(range.substr(dash + 1));
  if (!last || *last < *first) return BadRange(codec, range);
  return *last + 1;
}

absl::StatusOr<ChainSpec> ParsePartChain(std::string_view text) {
  KVC_ASSIGN_OR_RETURN(ChainSpec chain, ChainSpec::ParseStages(text));
  for (const StageSpec& stage : chain.stages()) {
    if (stage.codec->needs_place) {
      return absl::InvalidArgumentError(absl::StrFormat("%s cannot stand within a codec", stage.codec->name));
    }
    if (stage.needs_tensor()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("\"%s\" has to see the whole tensor, so it cannot stand within a codec", chain.text()));
    }
  }
  return chain;
}

absl::Status ParseParts(const std::vector<StageText::Part>& texts, StageSpec& stage) {
  const std::string_view name = stage.codec->name;
  if (texts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s needs ranges of heads with chains, for example %s(0-1:int8,2-:int4)", name, name));
  }
  if (texts.size() > StageSpec::kMaxParts) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has more than %d ranges", name, StageSpec::kMaxParts));
  }
  uint64_t next = 0;
  for (const StageText::Part& text : texts) {
    StageSpec::Part part{next, {}};
    KVC_ASSIGN_OR_RETURN(next, ParseRange(name, text.label, next, &text == &texts.back()));
    KVC_ASSIGN_OR_RETURN(part.chain, ParsePartChain(text.chain));
    stage.parts.push_back(std::move(part));
  }
  return absl::OkStatus();
}

absl::Status UnknownParameter(const CodecRow& codec, std::string_view name) {
  std::vector<std::string> names;
  for (const Parameter& parameter : codec.parameters) names.emplace_back(parameter.name);
  return absl::InvalidArgumentError(absl::StrFormat("%s has no parameter \"%s\" (it has %s)", codec.name, name,
                                                    names.empty() ? "none" : absl::StrJoin(names, ", ")));
}

absl::StatusOr<StageSpec> ParseStage(const CodecRow& codec, const StageText& text) {
  StageSpec stage{.codec = &codec};
  for (const Parameter& parameter : codec.parameters) {
    const auto given = std::ranges::find(text.args, parameter.name, &std::pair<std::string, std::string>::first);
    stage.values.push_back(parameter.fallback);
    if (given == text.args.end()) continue;
    KVC_ASSIGN_OR_RETURN(stage.values.back(), parameter.Parse(codec.name, given->second));
    if (parameter.kind == Parameter::Kind::kDigest) stage.digest = given->second;
    if (parameter.kind == Parameter::Kind::kList) stage.list = Parameter::ListOf(given->second);
  }
  if (!text.parts.empty() && !codec.takes_parts) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has no chains within it", codec.name));
  }
  for (const auto& [key, unused] : text.args) {
    if (std::ranges::find(codec.parameters, key, &Parameter::name) == codec.parameters.end()) {
      return UnknownParameter(codec, key);
    }
  }
  if (codec.takes_parts) KVC_RETURN_IF_ERROR(ParseParts(text.parts, stage));
  if (codec.check != nullptr) KVC_RETURN_IF_ERROR(codec.check(stage));
  return stage;
}

// Whether a codec may follow these stages, of which `tensor_codec` is the tensor codec, if there is one yet.
absl::Status CheckOrder(const CodecRow& codec, const CodecRow* tensor_codec) {
  switch (codec.kind()) {
    case StageKind::kTransform:
      if (tensor_codec == nullptr) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrFormat("%s must stand in front of the tensor codec", codec.name));
    case StageKind::kTensorCodec:
      if (tensor_codec == nullptr) return absl::OkStatus();
      return absl::InvalidArgumentError(
          absl::StrFormat("codec spec has two tensor codecs, %s and %s", tensor_codec->name, codec.name));
    case StageKind::kByteCodec: break;
  }
  if (tensor_codec != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s codes bytes: a tensor codec must stand in front of it, for example raw|%s", codec.name, codec.name));
}

}  // namespace

absl::StatusOr<ChainSpec> ChainSpec::OfStages(std::string_view text, std::span<const StageText> stages) {
  if (stages.size() > kMaxStages) {
    return absl::InvalidArgumentError(absl::StrFormat("codec spec has more than %d stages", kMaxStages));
  }
  auto parsed = std::make_shared<Parsed>();
  const CodecRow* tensor_codec = nullptr;
  for (const StageText& stage : stages) {
    const CodecRow* codec = FindCodec(stage.name);
    if (codec == nullptr) return UnknownCodec(stage.name);
    KVC_RETURN_IF_ERROR(CheckOrder(*codec, tensor_codec));
    KVC_ASSIGN_OR_RETURN(StageSpec spec, ParseStage(*codec, stage));
    if (codec->kind() == StageKind::kTensorCodec) {
      tensor_codec = codec;
      parsed->tensor_codec = parsed->stages.size();
    }
    absl::StrAppend(&parsed->text, parsed->stages.empty() ? "" : "|", spec.text());
    parsed->stages.push_back(std::move(spec));
  }
  if (tensor_codec == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("codec spec \"%s\" has no tensor codec behind its transforms, for example int4", text));
  }
  const auto transforms = std::span(parsed->stages).first(parsed->tensor_codec);
  const auto is_fallback = [](const StageSpec& stage) { return stage.codec->is_fallback; };
  const auto fallback = std::ranges::find_if(transforms, is_fallback);
  if (fallback != transforms.end() && fallback + 1 != transforms.end()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s must stand right in front of the tensor codec", fallback->codec->name));
  }
  if (tensor_codec->needs_place && fallback != transforms.begin()) {
    return absl::InvalidArgumentError(absl::StrFormat("no transform may stand in front of %s", tensor_codec->name));
  }
  if (parsed->text.size() > kMaxSpecBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "codec spec of %d bytes with all its parameters is above the limit of %d", parsed->text.size(), kMaxSpecBytes));
  }
  return ChainSpec(std::move(parsed));
}

absl::StatusOr<ChainSpec> ChainSpec::ParseStages(std::string_view text) {
  const UsualFloatEnvironment environment;
  KVC_ASSIGN_OR_RETURN(const std::vector<StageText> stages, ParseSyntax(text));
  return OfStages(text, stages);
}

absl::StatusOr<ChainSpec> ChainSpec::OfName(const NamedChain& named) {
  auto parsed = std::make_shared<Parsed>();
  parsed->text = named.name;
  KVC_ASSIGN_OR_RETURN(parsed->of_others, ParseStages(named.chain));
  parsed->of_values = parsed->of_others;
  if (!named.value_chain.empty()) {
    KVC_ASSIGN_OR_RETURN(parsed->of_values, ParseStages(named.value_chain));
  }
  parsed->first_layers = named.first_layers;
  if (named.first_layers > 0) {
    KVC_ASSIGN_OR_RETURN(parsed->of_first_layers, ParseStages(named.first_chain));
  }
  return ChainSpec(std::move(parsed));
}

absl::StatusOr<ChainSpec> ChainSpec::Parse(std::string_view text) {
  const UsualFloatEnvironment environment;
  if (const NamedChain* named = FindNamedChain(text)) {
    return named->differs() ? OfName(*named) : ParseStages(named->chain);
  }
  KVC_ASSIGN_OR_RETURN(const std::vector<StageText> stages, ParseSyntax(text));
  if (stages.size() > 1 || stages[0].name != kKv.name) return OfStages(text, stages);
  KVC_ASSIGN_OR_RETURN(const StageSpec kv, ParseStage(kKv, stages[0]));
  const std::string canonical = kv.text();
  const KvChains chains = ChainsOfKv(kv);
  return OfName({.name = canonical, .chain = chains.of_others, .purpose = {}, .value_chain = chains.of_values});
}

const std::string& ChainSpec::text() const { return parsed_->text; }

bool ChainSpec::differs() const { return parsed_->stages.empty(); }

const ChainSpec& ChainSpec::For(std::string_view tensor_name) const {
  if (!differs()) return *this;
  const KvName kv = ParseKvName(tensor_name);
  if (kv.layer >= 0 && kv.layer < parsed_->first_layers) return parsed_->of_first_layers;
  return kv.layer >= 0 && !kv.is_key ? parsed_->of_values : parsed_->of_others;
}

absl::StatusOr<ChainSpec> ChainSpec::WithFallback() const {
  std::string text;
  for (const StageSpec& stage : stages()) {
    if (stage.codec->is_fallback) return *this;
    absl::StrAppend(&text, text.empty() ? "" : "|", &stage == &tensor_codec() ? "fallback|" : "", stage.text());
  }
  return ParseStages(text);
}

absl::StatusOr<ChainSpec> ChainSpec::WithRanks(std::string_view tensor_name, const std::vector<uint32_t>& ranks) const {
  const ChainSpec& own = For(tensor_name);
  std::string text;
  bool has_artifact = false;
  for (StageSpec stage : own.stages()) {
    const auto list = std::ranges::find(stage.codec->parameters, Parameter::Kind::kList, &Parameter::kind);
    if (list != stage.codec->parameters.end() && !stage.digest.empty()) {
      has_artifact = true;
      if (!stage.list.empty()) return absl::InvalidArgumentError(absl::StrFormat("\"%s\" has ranks", own.text()));
      stage.values[static_cast<size_t>(list - stage.codec->parameters.begin())] = ranks.empty() ? 0 : 1;
      stage.list = ranks;
    }
    absl::StrAppend(&text, text.empty() ? "" : "|", stage.text());
  }
  if (has_artifact) return ParseStages(text);
  const auto has_parts = [](const StageSpec& stage) { return !stage.parts.empty(); };
  if (std::ranges::any_of(own.stages(), has_parts)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ranks do not reach the chains within \"%s\", which are to be one for all heads", own.text()));
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("ranks are of coefficients in an artifact, and \"%s\" has none", own.text()));
}

std::span<const StageSpec> ChainSpec::stages() const { return parsed_->stages; }
const StageSpec& ChainSpec::tensor_codec() const { return parsed_->stages[parsed_->tensor_codec]; }

double StageSpec::Number(std::string_view parameter) const {
  const auto found = std::ranges::find(codec->parameters, parameter, &Parameter::name);
  if (found == codec->parameters.end()) std::abort();  // a codec that asks for what its own row does not have
  return values[static_cast<size_t>(found - codec->parameters.begin())];
}

bool StageSpec::needs_tensor() const { return codec->needs_tensor != nullptr && codec->needs_tensor(*this); }

std::string StageSpec::text() const {
  std::vector<std::string> args;
  for (size_t i = 0; i < values.size(); ++i) {
    const Parameter& parameter = codec->parameters[i];
    if (parameter.is_left_out && values[i] == parameter.fallback) continue;
    const std::string value = parameter.kind == Parameter::Kind::kDigest ? digest
                              : parameter.kind == Parameter::Kind::kList ? absl::StrJoin(list, "/")
                                                                         : parameter.Print(values[i]);
    args.push_back(absl::StrFormat("%s=%s", parameter.name, value));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const uint64_t first = parts[i].first_head;
    const uint64_t end = i + 1 < parts.size() ? parts[i + 1].first_head : 0;  // 0: open
    const std::string last = end == 0 ? "-" : end - 1 > first ? absl::StrCat("-", end - 1) : "";
    args.push_back(absl::StrCat(first, last, ":", parts[i].chain.text()));
  }
  if (args.empty()) return std::string(codec->name);
  return absl::StrFormat("%s(%s)", codec->name, absl::StrJoin(args, ","));
}

}  // namespace kvcompress
