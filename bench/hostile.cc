// Whether values that a client may send make a codec slow: every chain of the registry, in both directions on one core,
// over distributions that leave the paths that are made for the usual one.
//
//   kvc_bench_hostile [--check] [--quick] [--dtype=F16] [--target=AVX2] [--chain=TEXT] [--output=FILE.json]
//
// Prints the speed for usual values, in GB/s of tensor bytes and with what a tensor has to be looked at beforehand, and
// that for each other distribution as a part of it. Parts below a third are marked, and listed after the table; with
// --check the exit status is 1 when there are any. --target limits the instruction set, by Highway's name of it;
// --chain leaves the chains in whose text TEXT is. Of usual values lz4 and zstd find nothing and store them, so that
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
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "bench/chain_blocks.h"
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

struct Slow {
  std::string cell;
  double part, speed;
};

class Table {
 public:
  Table(DType dtype, int rounds)
      : rounds_(rounds),
        tensor_(testing::MakeTensor("layer_0_key", dtype, {1, kHeads, kTokens, kChannels})),
        decoded_(kCount * DTypeSize(dtype)) {
    std::printf("%s, %s; GB/s of usual values, and the others' parts of it\n%8s", simd::TargetName(),
                std::string(DTypeName(dtype)).c_str(), "usual");
    for (const Distribution& distribution : Distributions()) {
      values_.push_back(Values(distribution, dtype));
      if (values_.size() > 1) std::printf("%9s", distribution.name);
    }
    std::printf("\n");
  }

  void Measure(const std::string& spec) {
    auto chain = Resolve(spec, tensor_);
    if (!chain.ok()) Fail(chain.status());
    std::vector<Cell> cells(values_.size());
    for (int round = 0; round < rounds_; ++round) Round(*chain, cells);
    const bool may_store = spec.find("|lz4") != std::string::npos || spec.find("|zstd") != std::string::npos;
    const auto reference = [&](double Cell::*seconds) {
      return may_store ? std::max(cells[0].*seconds, cells[1].*seconds) : cells[0].*seconds;
    };
    const auto too_slow = [&](const Cell& cell) {
      if (cell.refused) return false;
      return reference(&Cell::encode) / cell.encode < kLeastPart || reference(&Cell::decode) / cell.decode < kLeastPart;
    };
    for (int round = 0; round < kMoreRounds && std::ranges::any_of(cells, too_slow); ++round) Round(*chain, cells);
    Print("encode", spec, reference(&Cell::encode), &Cell::encode, cells);
    Print("decode", spec, reference(&Cell::decode), &Cell::decode, cells);
    std::fflush(stdout);
  }

  // All that was printed, by chain and direction.
  const nlohmann::json& rows() const { return rows_; }

  // Whether no part is too small; says which are.
  bool Check() {
    std::ranges::sort(slow_, {}, &Slow::part);
    std::printf("\n%zu parts are below %.2f\n", slow_.size(), kLeastPart);
    for (const Slow& slow : slow_) {
      std::printf("%6.2f  %7.3f GB/s  %s\n", slow.part, slow.speed, slow.cell.c_str());
    }
    return slow_.empty();
  }

 private:
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

  // Parts of what takes `reference` seconds.
  void Print(const std::string& direction, const std::string& spec, double reference, double Cell::*seconds,
             const std::vector<Cell>& cells) {
    const double bytes = static_cast<double>(decoded_.size()) * 1e-9;
    const auto speed = [&](const Cell& cell) { return bytes / (cell.*seconds); };
    std::printf("%8.2f", bytes / reference);
    nlohmann::json parts;
    for (size_t i = 1; i < cells.size(); ++i) {
      if (cells[i].refused) {
        std::printf("%8s ", "-");
        continue;
      }
      const double part = reference / (cells[i].*seconds);
      std::printf("%8.2f%c", part, part < kLeastPart ? '*' : ' ');
      parts[Distributions()[i].name] = part;
      if (part < kLeastPart) {
        slow_.push_back(
            {absl::StrFormat("%s %s of %s", direction, spec, Distributions()[i].name), part, speed(cells[i])});
      }
    }
    std::printf("  %s %s\n", direction.c_str(), spec.c_str());
    rows_.push_back(
        {{"chain", spec}, {"direction", direction}, {"usual", bytes / reference}, {"parts", std::move(parts)}});
  }

  const int rounds_;
  const TensorDesc tensor_;
  std::vector<std::byte> decoded_;
  std::vector<std::vector<std::byte>> values_;
  std::vector<Slow> slow_;
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
  DType dtype = DType::kF16;
  std::string_view wanted, output;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const std::string_view value = flag.substr(std::min(flag.find('=') + 1, flag.size()));
    if (flag == "--check") {
      check = true;
    } else if (flag == "--quick") {
      rounds = kQuickRounds;
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
  Table table(dtype, rounds);
  for (const std::string& chain : Chains(wanted)) table.Measure(chain);
  if (!output.empty()) std::ofstream(std::string(output)) << nlohmann::json{{"rows", table.rows()}} << '\n';
  return table.Check() || !check ? 0 : 1;
}

}  // namespace
}  // namespace kvcompress

int main(int argc, char** argv) { return kvcompress::Main(argc, argv); }
