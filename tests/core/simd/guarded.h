#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

namespace kvcompress::testing {

// `size` bytes of which the first or the last lies against a page that cannot be touched, at any alignment.
class Guarded {
 public:
  enum class Against { kPageBefore, kPageAfter };

  Guarded(size_t size, Against against) : size_(size) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (size + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    void* map = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) std::abort();
    map_ = static_cast<uint8_t*>(map);
    if (inner > 0 && mprotect(map_ + page, inner, PROT_READ | PROT_WRITE) != 0) std::abort();
    data_ = map_ + page + (against == Against::kPageAfter ? inner - size : 0);
  }
  Guarded(const void* from, size_t size, Against against) : Guarded(size, against) {
    if (size > 0) std::memcpy(data_, from, size);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(map_, mapped_); }

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  uint8_t* map_;
  uint8_t* data_;
  size_t mapped_;
  size_t size_;
};

}  // namespace kvcompress::testing
