#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace metatasnet {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Ask for huge pages for memory that is written next: fewer page faults and fewer TLB misses.
inline void prefer_huge_pages(void* memory, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refusing a hint is no error
#else
  (void)memory;
  (void)bytes;
#endif
}

// Uninitialised memory on cache-line boundaries; if it is large, on huge pages where the system has them.
class Buffer {
 public:
  Buffer() = default;

  explicit Buffer(std::size_t bytes) {
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    if (whole < bytes) throw std::bad_alloc();
    memory_.reset(std::aligned_alloc(alignment, whole ? whole : alignment));
    if (!memory_) throw std::bad_alloc();
    prefer_huge_pages(memory_.get(), whole);
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
};

template <class T>
Buffer buffer_of(std::size_t count) {
  return Buffer(count * sizeof(T));
}

}  // namespace metatasnet
