#include "server/telemetry/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace kvcompress {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

void Append(std::vector<MetricFamily>& families, const char* name, const char* help, MetricType type, double value) {
  MetricFamily& family = families.emplace_back(MetricFamily{.name = name, .help = help, .type = type, .metric = {}});
  family.metric.emplace_back();
  (type == MetricType::Counter ? family.metric[0].counter.value : family.metric[0].gauge.value) = value;
}

// Seconds since the epoch at which this process began; 0 when unknown.
double StartTime() {
  // Field 22 of stat, in ticks since boot; the fields follow the last parenthesis of the program's name.
  std::ifstream stat("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  const size_t paren = text.rfind(')');
  if (paren == std::string::npos) return 0;
  std::istringstream fields(text.substr(paren + 1));
  std::string skipped;
  for (int i = 3; i < 22; ++i) fields >> skipped;
  double ticks = 0;
  fields >> ticks;
  std::ifstream system("/proc/stat");
  for (std::string word; system >> word;) {
    double boot = 0;
    if (word == "btime" && system >> boot) return boot + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  return 0;
}

// Resident memory by what is behind it, one series each. Shared memory is the regions of clients, as far as they are
// mapped and touched here; what the process holds itself is anonymous.
void AppendResidentMemory(std::vector<MetricFamily>& families) {
  constexpr std::pair<std::string_view, const char*> kBackings[] = {
      {"RssAnon:", "anonymous"}, {"RssFile:", "file"}, {"RssShmem:", "shared"}};
  MetricFamily family{.name = "kvcompress_resident_memory_bytes",
                      .help = "Resident memory: the process's own (anonymous), of files, of regions of shared memory.",
                      .type = MetricType::Gauge,
                      .metric = {}};
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    std::istringstream fields(line);
    std::string name;
    double kib = 0;
    fields >> name >> kib;
    const auto* const found = std::ranges::find(kBackings, name, [](const auto& backing) { return backing.first; });
    if (found == std::end(kBackings)) continue;
    prometheus::ClientMetric& metric = family.metric.emplace_back();
    metric.label.push_back({.name = "backing", .value = found->second});
    metric.gauge.value = kib * 1024;
  }
  if (!family.metric.empty()) families.push_back(std::move(family));
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

}  // namespace

void AppendProcessMetrics(std::vector<MetricFamily>& families) {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    Append(families, "process_cpu_seconds_total", "User and system CPU time.", MetricType::Counter,
           Seconds(usage.ru_utime) + Seconds(usage.ru_stime));
  }
  static const double start_time = StartTime();
  if (start_time > 0) {
    Append(families, "process_start_time_seconds", "Start of the process since the epoch.", MetricType::Gauge,
           start_time);
  }
  std::ifstream statm("/proc/self/statm");
  double virtual_pages = 0;
  double resident_pages = 0;
  if (statm >> virtual_pages >> resident_pages) {
    const auto page = static_cast<double>(sysconf(_SC_PAGESIZE));
    Append(families, "process_virtual_memory_bytes", "Virtual memory.", MetricType::Gauge, virtual_pages * page);
    Append(families, "process_resident_memory_bytes", "Resident memory.", MetricType::Gauge, resident_pages * page);
  }
  AppendResidentMemory(families);
  std::error_code error;
  const auto descriptors = std::filesystem::directory_iterator("/proc/self/fd", error);
  if (!error) {
    const auto open = std::distance(begin(descriptors), end(descriptors));
    Append(families, "process_open_fds", "Open file descriptors.", MetricType::Gauge, static_cast<double>(open));
  }
}

}  // namespace kvcompress
