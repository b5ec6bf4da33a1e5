#include "core/base/cgroup.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace kvcompress {
namespace {

std::vector<std::string> WordsOf(const std::string& file) {
  std::ifstream stream(file);
  return {std::istream_iterator<std::string>(stream), {}};
}

template <typename T>
void Tighten(std::optional<T>& limit, T other) {
  limit = limit ? std::min(*limit, other) : other;
}

// "max" and -1 are no numbers here, and no limits.
void AddCpus(const std::string& quota_text, const std::string& period_text, CgroupLimits& limits) {
  uint64_t quota = 0;
  uint64_t period = 0;
  if (!absl::SimpleAtoi(quota_text, &quota) || !absl::SimpleAtoi(period_text, &period)) return;
  if (quota > 0 && period > 0) Tighten(limits.cpus, static_cast<double>(quota) / static_cast<double>(period));
}

void AddMemory(const std::string& text, CgroupLimits& limits) {
  constexpr uint64_t kUnlimited = uint64_t{1} << 62;  // version 1 says LONG_MAX, in whole pages
  uint64_t bytes = 0;
  if (absl::SimpleAtoi(text, &bytes) && bytes < kUnlimited) Tighten(limits.memory_bytes, bytes);
}

void ReadGroup(const std::string& folder, CgroupLimits& limits) {
  if (const auto words = WordsOf(folder + "/cpu.max"); words.size() == 2) AddCpus(words[0], words[1], limits);
  if (const auto words = WordsOf(folder + "/memory.max"); words.size() == 1) AddMemory(words[0], limits);
  const auto quota = WordsOf(folder + "/cpu.cfs_quota_us");
  const auto period = WordsOf(folder + "/cpu.cfs_period_us");
  if (quota.size() == 1 && period.size() == 1) AddCpus(quota[0], period[0], limits);
  if (const auto words = WordsOf(folder + "/memory.limit_in_bytes"); words.size() == 1) AddMemory(words[0], limits);
}

// The group at `path`, and those around it.
void ReadGroups(const std::string& hierarchy, std::string path, CgroupLimits& limits) {
  while (true) {
    ReadGroup(hierarchy + path, limits);
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) break;
    path.resize(slash);
  }
}

}  // namespace

CgroupLimits ReadCgroupLimits(const std::string& membership, const std::string& mount) {
  CgroupLimits limits;
  std::ifstream lines(membership);
  // NUMBER:CONTROLLERS:PATH; of version 2 there are no controllers.
  for (std::string line; std::getline(lines, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    ReadGroups(mount + "/" + fields[1], fields[2], limits);
    // Several controllers of one hierarchy have a link each to its folder, whose name may have them in another order.
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    for (const std::string& controller : controllers) ReadGroups(mount + "/" + controller, fields[2], limits);
  }
  return limits;
}

}  // namespace kvcompress
