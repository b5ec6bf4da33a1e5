#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace kvcompress {

// What the control groups of Linux, with which containers are limited, allow this process; nothing where there is no
// limit, or none that can be read.
struct CgroupLimits {
  std::optional<double> cpus;  // CPU seconds a second
  std::optional<uint64_t> memory_bytes;
};

// The strictest of the process' groups and those around them, of versions 1 and 2. `membership` lists the groups, in
// the format of /proc/PID/cgroup, and `mount` is where they are found; in a container only its own may be there.
CgroupLimits ReadCgroupLimits(const std::string& membership = "/proc/self/cgroup",
                              const std::string& mount = "/sys/fs/cgroup");

}  // namespace kvcompress
