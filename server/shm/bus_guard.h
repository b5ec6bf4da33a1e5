#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "core/base/shared_memory.h"
#include "server/shm/regions.h"

namespace kvcompress {

// Makes `mapping` a region whose memory may vanish. An access to a page that its object lacks, because the object was
// cut short or the machine has no memory for it, raises SIGBUS, which would end the process. The handler maps zero
// pages of this process there, and marks the region as not intact before anybody can read the zeros.
//
// The first call installs the process's handler of SIGBUS, which passes faults at other addresses on to the handler
// before it. RESOURCE_EXHAUSTED when there are kMaxGuardedMappings.
absl::StatusOr<std::shared_ptr<SharedRegion>> GuardMapping(SharedMapping mapping);

inline constexpr size_t kMaxGuardedMappings = 4096;

}  // namespace kvcompress
