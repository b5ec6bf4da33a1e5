#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

// Names that people may write in place of a codec spec. What a name means may change from one version to the next:
// frames hold the chain itself, never its name.
namespace kvcompress {

struct CodecRow;
struct StageSpec;

struct NamedChain {
  std::string_view name;
  std::string_view chain;
  std::string_view purpose;
  // The first layers' chain, where it is another one: for tensors named layer_{i}_key|value with i below this.
  int64_t first_layers = 0;
  std::string_view first_chain = {};
  // The values' chain, where it is another one: for tensors named layer_{i}_value.
  std::string_view value_chain = {};

  // Whether it means different chains for different tensors.
  bool differs() const { return first_layers > 0 || !value_chain.empty(); }
};

// The name that takes parameters, kv(bits=B,artifact=ID): the recommended chain for keys and values. It is written as a
// codec is, but is none: the registry does not have it.
extern const CodecRow kKv;

// What it stands for. Keys and values, of which a cache has as many, take `bits` a value between them.
struct KvChains {
  std::string of_values;  // tensors named layer_{i}_value
  std::string of_others;
};
KvChains ChainsOfKv(const StageSpec& kv);

// Of tensors of opaque dtypes, where what was asked for would change their bits.
inline constexpr std::string_view kOpaqueChain = "exact";

std::span<const NamedChain> AllNamedChains();

// Null when there is none of that name.
const NamedChain* FindNamedChain(std::string_view name);

// The name that stands for this canonical spec whatever the tensor, or the text itself if it is a name (`mixed`). Empty
// if there is none.
std::string_view NameOfChain(std::string_view spec);

// Each name with what it is for, for help texts.
std::string DescribeNamedChains();

}  // namespace kvcompress
