// That the calls over spans do not allocate, by counting in operator new of the whole program.
#include <gmock/gmock.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace {

std::atomic<size_t> allocations = 0;

void* Allocate(size_t size, size_t alignment) {
  ++allocations;
  void* memory = std::aligned_alloc(alignment, (size + alignment) / alignment * alignment);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t size) { return Allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) { return Allocate(size, static_cast<size_t>(alignment)); }
// Inlined without its counterpart, GCC takes the free for a mismatch.
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

struct Counts {
  size_t compress = 0;
  size_t decompress = 0;
};

// Allocations of a few calls behind the first.
Counts AllocationsOfLaterCalls(std::string_view codec, const std::vector<uint64_t>& shape) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, shape);
  const std::vector<std::byte> values = MakeValues(DType::kF16, *NumElements(shape), Distribution::kOutliers);
  const auto compressor = TensorCompressor::Create(tensor, codec);
  EXPECT_THAT(compressor, IsOk());
  std::vector<std::byte> frame(compressor->max_frame_bytes());
  std::vector<std::byte> back(values.size());
  TensorDecompressor decompressor;
  Counts counts;
  for (int call = 0; call < 5; ++call) {
    const bool later = call > 0;
    ErrorSums sums;
    const size_t before = allocations;
    const absl::StatusOr<size_t> size = compressor->Compress(values, frame, call % 2 == 0 ? &sums : nullptr);
    const size_t between = allocations;
    if (later) counts.compress += between - before;
    EXPECT_THAT(size, IsOk());
    const size_t again = allocations;
    const absl::Status header = decompressor.ReadHeader(frame);
    const absl::StatusOr<size_t> decoded = decompressor.Decompress(ByteSpan(frame).first(size.value_or(0)), back);
    if (later) counts.decompress += allocations - again;
    EXPECT_THAT(header, IsOk());
    EXPECT_THAT(decoded, IsOk());
  }
  return counts;
}

TEST(AllocationTest, TheCounterCounts) {
  const size_t before = allocations;
  const std::vector<std::byte> some(100);
  EXPECT_EQ(allocations, before + 1);
}

TEST(AllocationTest, NoneAfterTheFirstCall) {
  for (const char* codec : {"int4", "int8(group=128)", "int3", "raw", "raw|zstd", "int4|zstd(level=1)"}) {
    for (const std::vector<uint64_t>& shape :
         {std::vector<uint64_t>{0}, {1000}, {3 * 131072 + 77}, {1, 2, 3001, 80}, {1, 70, 1, 64}}) {
      const Counts counts = AllocationsOfLaterCalls(codec, shape);
      EXPECT_EQ(counts.compress, 0u) << codec << ", " << shape.back();
      EXPECT_EQ(counts.decompress, 0u) << codec << ", " << shape.back();
    }
  }
}

TEST(AllocationTest, TransformsAllocateWhenTheyCompressOnly) {
  for (const char* codec : {"sparse|int4", "clamp|int4", "sparse(ratio=0.9)|int8|zstd(level=1)"}) {
    EXPECT_EQ(AllocationsOfLaterCalls(codec, {3 * 131072 + 77}).decompress, 0u) << codec;
  }
}

}  // namespace
}  // namespace kvcompress
