#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "core/base/shared_memory.h"
#include "server/shm/regions.h"

namespace kvcompress {

// Makes `mapping` a region whose memory may vanish: where its object has no page any more, because it was cut short or
// the machine has no memory for it, SIGBUS is answered by zero pages of this process's own, and the region is no longer
// intact, which it says before anybody can read the zeros. Without that the signal would end the process.
//
// The first call installs a handler of SIGBUS for the process; faults anywhere else go on to the handler before it.
// RESOURCE_EXHAUSTED when there are kMaxGuardedMappings.
absl::StatusOr<std::shared_ptr<SharedRegion>> GuardMapping(SharedMapping mapping);

inline constexpr size_t kMaxGuardedMappings = 4096;

}  // namespace kvcompress
