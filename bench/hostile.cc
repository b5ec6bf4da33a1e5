// Whether values that a client may send make a codec slow: every chain of the registry, in both directions on one core,
// over distributions that leave the paths that are made for the usual one.
//
//   kvc_bench_hostile [--check] [--quick] [--usual] [--dtype=F16] [--target=AVX2] [--chain=TEXT]
//                     [--output=FILE.json]
//
// Prints the speed for usual values, in GB/s of tensor bytes and with what a tensor has to be looked at beforehand, and
// that for each other distribution as a part of it. Parts below a third are marked, and listed after the table; with
// --check the exit status is 1 when there are any, but for those of a library: of a chain that ends in its codec, which
// that codec's help text calls slow, and that has the third without it. They have a list of their own, and so
// have chains that are slow with usual values (usual_speeds.h), which fail the check where no help text calls them so.
// --target limits the instruction set, by Highway's name of it; --chain leaves the chains in whose text TEXT is,
// --usual the distributions that speeds are made of. Of usual values lz4 and zstd find nothing and store them, so that
// the speed is memcpy's: what these chains are held to is the slower one of usual and of coarse values. Each cell is
// the fastest of some rounds, over all distributions in turn. A distribution that a chain refuses, fallback or not, has
// a dash.

#include <hwy/targets.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "bench/chain_blocks.h"
#include "bench/usual_speeds.h"
#include "core/base/half.h"
#include "core/codec/chain_spec.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "core/simd/group_quant.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

constexpr size_t kHeads = 8, kTokens = 512, kChannels = 128;
constexpr size_t kCount = kHeads * kTokens * kChannels;
constexpr int kRounds = 4, kQuickRounds = 2;
constexpr int kMoreRounds = 6;  // of a chain with a part that is too small
constexpr double kLeastPart = 1.0 / 3;

struct Distribution {
  const char* name;
  // The value with this index, of this type.
  std::function<float(DType, size_t, std::mt19937&)> value;
};

float SmallestNormal(DType dtype) { return dtype == DType::kF16 ? 0x1p-14f : std::numeric_limits<float>::min(); }

// The first one is the usual, the second what chains that end in lz4 or zstd are held to as well.
constexpr size_t kUsualDistributions = 2;
const std::vector<Distribution>& Distributions() {
  using testing::Bell;
  static const std::vector<Distribution> distributions = {
      {"usual", [](DType, size_t, std::mt19937& random) { return Bell(random); }},
      // Of which many are equal, as lz4 and zstd need it to find anything.
      {"coarse", [](DType, size_t, std::mt19937& random) { return std::round(4 * Bell(random)) / 4; }},
      // A mean of a hundred deviations, of all values or of each channel, as some models' keys have it.
      {"mean", [](DType, size_t, std::mt19937& random) { return 100 + Bell(random); }},
      {"means", [](DType, size_t i, std::mt19937& random) { return (i % 2 == 0 ? 100.0f : -100.0f) + Bell(random); }},
      {"tiny", [](DType d, size_t, std::mt19937& random) { return Bell(random) * SmallestNormal(d) / 64; }},
      // Of which binary32 does not hold the squares.
      {"small", [](DType d, size_t, std::mt19937& random) { return Bell(random) * (d == DType::kF16 ? 1 : 1e-20f); }},
      {"equal", [](DType, size_t, std::mt19937&) { return 1.5f; }},
      {"zeros", [](DType, size_t, std::mt19937&) { return 0.0f; }},
      {"halfzero", [](DType, size_t, std::mt19937& random) { return random() % 2 == 0 ? -0.0f : Bell(random); }},
      // One in each group.
      {"outlier", [](DType, size_t i, std::mt19937& random) { return Bell(random) * (i % 64 == 9 ? 1000.0f : 1.0f); }},
      {"range",
       [](DType, size_t i, std::mt19937& random) {
         return std::ldexp(i % 2 == 0 ? 1.0f : -1.0f, static_cast<int>(random() % 39) - 24);
       }},
      {"sorted", [](DType, size_t i, std::mt19937&) { return static_cast<float>(i) * (8.0f / kCount) - 4; }},
      {"nan",
       [](DType, size_t i, std::mt19937& random) {
         return i % 4096 == 77 ? std::numeric_limits<float>::quiet_NaN() : Bell(random);
       }},
      {"bits", nullptr},
      {"repeated",
       [](DType, size_t i, std::mt19937&) {
         std::mt19937 of_channel(static_cast<uint32_t>(i % kChannels));
         return Bell(of_channel);
       }},
  };
  return distributions;
}

std::vector<std::byte> Values(const Distribution& distribution, DType dtype) {
  if (distribution.value == nullptr) return testing::MakeBits(kCount * DTypeSize(dtype));
  std::mt19937 random(1);
  std::vector<std::byte> values(kCount * DTypeSize(dtype));
  for (size_t i = 0; i < kCount; ++i) StoreFromF32(dtype, distribution.value(dtype, i, random), values.data(), i);
  return values;
}

// The canonical texts of all examples of the registry, and of what names stand for.
std::vector<std::string> Chains(std::string_view wanted) {
  std::vector<std::string> chains;
  const auto add = [&](std::string_view text) {
    const auto spec = ChainSpec::Parse(text);
    if (spec.ok() && spec->text().find(wanted) != std::string::npos) chains.push_back(spec->text());
  };
  for (const CodecRow* row : AllCodecs()) std::ranges::for_each(row->examples, add);
  for (const NamedChain& named : AllNamedChains()) add(named.chain);
  std::ranges::sort(chains);
  chains.erase(std::unique(chains.begin(), chains.end()), chains.end());
  return chains;
}

// A block that the chain refuses is stored, as a client may ask for.
absl::StatusOr<CodecChain> Resolve(const std::string& text, const TensorDesc& tensor) {
  KVC_ASSIGN_OR_RETURN(const ChainSpec spec, ChainSpec::Parse(text));
  KVC_ASSIGN_OR_RETURN(CodecChain chain, spec.Resolve({}, tensor));
  if (!chain.refuses_values()) return chain;
  KVC_ASSIGN_OR_RETURN(const ChainSpec with, spec.WithFallback());
  return with.Resolve({}, tensor);
}

bool IsLibrary(std::string_view codec) { return codec == "zstd" || codec == "lz4"; }

// The library that a chain ends in the codec of, where the help text of that calls it slow; empty for others.
std::string_view SlowLibrary(const std::string& text, bool decodes) {
  const auto spec = ChainSpec::Parse(text);
  if (!spec.ok()) return {};
  const StageSpec& last = spec->stages().back();
  return IsLibrary(last.codec->name) && UsualSpeeds::IsCalledSlow(decodes, last) ? last.codec->name : "";
}

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "kvc_bench_hostile: %s\n", std::string(status.message()).c_str());
  std::_Exit(1);
}

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Of this thread's CPU, which others on the machine disturb less than they do the time of day.
double Seconds(const std::function<absl::Status()>& work) {
  const double begin = CpuSeconds();
  if (const absl::Status status = work(); !status.ok()) Fail(status);
  return CpuSeconds() - begin;
}

// The fastest run of each direction of a chain over one distribution.
struct Cell {
  double encode = std::numeric_limits<double>::infinity();
  double decode = encode;
  bool refused = false;
};

using Direction = double Cell::*;
constexpr Direction kDirections[] = {&Cell::encode, &Cell::decode};

struct Slow {
  std::string cell;
  double part, speed;
};

// A chain's cells, one for each distribution.
struct Row {
  std::string spec;
  std::vector<Cell> cells;

  // The seconds that the others are held to.
  double Reference(Direction direction) const {
    const bool may_store = spec.find("|lz4") != std::string::npos || spec.find("|zstd") != std::string::npos;
    return may_store ? std::max(cells[0].*direction, cells[1].*direction) : cells[0].*direction;
  }
  double Part(size_t i, Direction direction) const { return Reference(direction) / (cells[i].*direction); }
  bool IsTooSlow(size_t i, Direction direction) const { return !cells[i].refused && Part(i, direction) < kLeastPart; }
  bool HasTooSlow() const {
    for (size_t i = 0; i < cells.size(); ++i) {
      if (IsTooSlow(i, &Cell::encode) || IsTooSlow(i, &Cell::decode)) return true;
    }
    return false;
  }
};

class Table {
 public:
  Table(DType dtype, int rounds, size_t distributions)
      : rounds_(rounds),
        tensor_(testing::MakeTensor("layer_0_key", dtype, {1, kHeads, kTokens, kChannels})),
        decoded_(kCount * DTypeSize(dtype)) {
    std::printf("%s, %s; GB/s of usual values, and the others' parts of it\n%8s", simd::TargetName(),
                std::string(DTypeName(dtype)).c_str(), "usual");
    for (const Distribution& distribution : std::span(Distributions()).first(distributions)) {
      values_.push_back(Values(distribution, dtype));
      if (values_.size() > 1) std::printf("%9s", distribution.name);
    }
    std::printf("\n");
  }

  void Measure(const std::string& spec) {
    const Row row = RowOf(spec);
    std::optional<Row> without;  // the library's codec
    if (row.HasTooSlow() && !SlowLibrary(spec, false).empty()) without = RowOf(spec.substr(0, spec.rfind('|')));
    for (const Direction direction : kDirections) Print(direction, row, without);
    std::fflush(stdout);
  }

  // All that was printed, by chain and direction.
  nlohmann::json Results() const {
    return {{"rows", rows_}, {"slow", usual_speeds_.Slow()}, {"targets", usual_speeds_.Targets()}};
  }

  // Whether no part is too small but those of libraries, and no chain too slow; says which are.
  bool Check() {
    List(slow_, absl::StrFormat("%d parts are below %.2f", slow_.size(), kLeastPart));
    List(of_libraries_,
         absl::StrFormat("%d more are of a library whose codec's help text calls it slow", of_libraries_.size()));
    return usual_speeds_.Check() && slow_.empty();
  }

 private:
  static void List(std::vector<Slow>& parts, const std::string& title) {
    std::ranges::sort(parts, {}, &Slow::part);
    std::printf("\n%s\n", title.c_str());
    for (const Slow& slow : parts) std::printf("%6.2f  %7.3f GB/s  %s\n", slow.part, slow.speed, slow.cell.c_str());
  }

  Row RowOf(const std::string& spec) {
    auto chain = Resolve(spec, tensor_);
    if (!chain.ok()) Fail(chain.status());
    Row row{spec, std::vector<Cell>(values_.size())};
    for (int round = 0; round < rounds_; ++round) Round(*chain, row.cells);
    for (int round = 0; round < kMoreRounds && row.HasTooSlow(); ++round) Round(*chain, row.cells);
    return row;
  }

  void Round(const CodecChain& chain, std::vector<Cell>& cells) {
    for (size_t i = 0; i < values_.size(); ++i) {
      ChainBlocks blocks(chain, tensor_, values_[i]);
      ErrorSums sums;
      const double encode = Seconds([&]() -> absl::Status {
        KVC_RETURN_IF_ERROR(blocks.Analyze());
        const absl::Status encoded = blocks.Encode(sums);
        cells[i].refused = i > 0 && absl::IsInvalidArgument(encoded);
        return cells[i].refused ? absl::OkStatus() : encoded;
      });
      if (cells[i].refused) continue;
      cells[i].encode = std::min(cells[i].encode, encode);
      cells[i].decode = std::min(cells[i].decode, Seconds([&] { return blocks.Decode(decoded_); }));
    }
  }

  void Print(Direction direction, const Row& row, const std::optional<Row>& without) {
    const double bytes = static_cast<double>(decoded_.size()) * 1e-9;
    const bool decodes = direction == &Cell::decode;
    const std::string name = decodes ? "decode" : "encode";
    const std::string_view library = SlowLibrary(row.spec, decodes);
    std::printf("%8.2f", bytes / row.Reference(direction));
    nlohmann::json parts;
    for (size_t i = 1; i < row.cells.size(); ++i) {
      if (row.cells[i].refused) {
        std::printf("%8s ", "-");
        continue;
      }
      const double part = row.Part(i, direction);
      const bool is_slow = row.IsTooSlow(i, direction);
      std::printf("%8.2f%c", part, is_slow ? '*' : ' ');
      parts[Distributions()[i].name] = part;
      if (!is_slow) continue;
      Slow slow{absl::StrFormat("%s %s of %s", name, row.spec, Distributions()[i].name), part,
                bytes / (row.cells[i].*direction)};
      const bool is_librarys = !library.empty() && without && !without->IsTooSlow(i, direction);
      if (is_librarys) slow.cell.append(", by ").append(library);
      (is_librarys ? of_libraries_ : slow_).push_back(std::move(slow));
    }
    std::printf("  %s %s\n", name.c_str(), row.spec.c_str());
    usual_speeds_.Add(decodes, row.spec, bytes / row.Reference(direction));
    rows_.push_back({{"chain", row.spec},
                     {"direction", name},
                     {"usual", bytes / row.Reference(direction)},
                     {"parts", std::move(parts)}});
  }

  const int rounds_;
  const TensorDesc tensor_;
  std::vector<std::byte> decoded_;
  std::vector<std::vector<std::byte>> values_;
  std::vector<Slow> slow_, of_libraries_;
  UsualSpeeds usual_speeds_;
  nlohmann::json rows_ = nlohmann::json::array();
};

// False where the machine or the build has no instruction set of this name.
bool LimitTarget(std::string_view name) {
  const auto targets = hwy::SupportedAndGeneratedTargets();
  const auto target = std::ranges::find(targets, name, hwy::TargetName);
  if (target == targets.end()) return false;
  hwy::SetSupportedTargetsForTest(*target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return true;
}

int Main(int argc, char** argv) {
  bool check = false;
  int rounds = kRounds;
  size_t distributions = Distributions().size();
  DType dtype = DType::kF16;
  std::string_view wanted, output;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const std::string_view value = flag.substr(std::min(flag.find('=') + 1, flag.size()));
    if (flag == "--check") {
      check = true;
    } else if (flag == "--quick") {
      rounds = kQuickRounds;
    } else if (flag == "--usual") {
      distributions = kUsualDistributions;
    } else if (flag.starts_with("--chain=")) {
      wanted = value;
    } else if (flag.starts_with("--output=")) {
      output = value;
    } else if (flag.starts_with("--dtype=") && DTypeFromName(value).has_value()) {
      dtype = *DTypeFromName(value);
    } else if (!flag.starts_with("--target=") || !LimitTarget(value)) {
      std::fprintf(stderr, "kvc_bench_hostile: there is no %s\n", argv[i]);
      return 2;
    }
  }
  Table table(dtype, rounds, distributions);
  for (const std::string& chain : Chains(wanted)) table.Measure(chain);
  const bool is_good = table.Check();
  if (!output.empty()) std::ofstream(std::string(output)) << table.Results() << '\n';
  return is_good || !check ? 0 : 1;
}

}  // namespace
}  // namespace kvcompress

int main(int argc, char** argv) { return kvcompress::Main(argc, argv); }
