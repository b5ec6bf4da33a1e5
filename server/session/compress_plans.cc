#include "server/session/compress_plans.h"

#include <utility>

#include "absl/hash/hash.h"

namespace kvcompress {

// Abseil's hash begins elsewhere in each process, so nobody can know which headers share an entry.
CompressPlans::Entry& CompressPlans::EntryOf(std::string_view header) {
  return entries_[absl::HashOf(header) % entries_.size()];
}

std::shared_ptr<const CompressPlan> CompressPlans::Find(std::string_view header) {
  if (header.size() > kMaxBytes) return nullptr;
  Entry& entry = EntryOf(header);
  if (!entry.mutex.TryLock()) return nullptr;
  std::shared_ptr<const CompressPlan> plan = entry.header == header ? entry.plan : nullptr;
  entry.mutex.Unlock();
  return plan;
}

void CompressPlans::Keep(std::string_view header, std::shared_ptr<const CompressPlan> plan) {
  if (header.size() > kMaxBytes || !plan->compressor.chain().is_fast()) return;
  Entry& entry = EntryOf(header);
  if (!entry.mutex.TryLock()) return;
  entry.header = header;
  std::swap(entry.plan, plan);  // the one before is freed without the lock
  entry.mutex.Unlock();
}

}  // namespace kvcompress
