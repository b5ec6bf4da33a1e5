#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/cli/break_even.h"
#include "client/cli/sweep.h"
#include "client/file/file_rotary.h"

// What -sweep gives to its user.
namespace kvcompress {

// What keys and values must keep, each kind's figures as a run reports them; 0: no such limit.
struct SweepLimits {
  double max_key_mae = 0;
  double max_value_mae = 0;
  double min_key_cosine = 0;
  double min_value_cosine = 0;

  bool any() const { return max_key_mae > 0 || max_value_mae > 0 || min_key_cosine > 0 || min_value_cosine > 0; }
};

// Bytes that a token of the cache takes in all keys and values; INVALID_ARGUMENT where no tensor has tokens.
absl::StatusOr<double> BytesPerToken(const safetensors::Header& header);

struct SweepResult {
  std::string input;  // path, as it was given
  SweepLimits limits;
  std::string flags;                // for a command line, what specs do not say; empty or begins with a blank
  std::optional<RotaryUse> rotary;  // how keys were turned back
  size_t threads = 1;
  double copy_seconds = 0;  // of memcpy over all tensors
  std::vector<Link> links;
  uint64_t context_tokens = 0;  // of links: what is loaded before the first token of an answer
  double bytes_per_token = 0;   // of links
  std::vector<SpecFigures> specs;
  std::vector<std::pair<std::string, std::string>> refused;  // specs that do not take the values, and why
};

// `text` as one word of a POSIX shell's command line.
std::string ShellWord(std::string_view text);

// The command line that compresses `input` with `spec`.
std::string SweepCommand(std::string_view input, std::string_view spec, std::string_view flags);

// `json` such that it may stand within an HTML <script> element: nothing in it can end the element or begin another.
std::string EscapeForScript(std::string_view json);

struct SweepReport {
  std::string json;   // the summary for standard output
  std::string table;  // the same for people (sweep_table.h)
  std::string html;   // one page that loads nothing; with the figures of each tensor
};
SweepReport MakeSweepReport(const FileSample& sample, const SweepResult& result);

}  // namespace kvcompress
