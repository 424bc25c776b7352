#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace metatasnet {

// Uninitialised memory on cache-line boundaries, on huge pages where it is large and the system has them.
class Buffer {
 public:
  Buffer() = default;

  explicit Buffer(std::size_t bytes) {
    constexpr std::size_t line = 64, huge = std::size_t{2} << 20;
    const std::size_t alignment = bytes >= 4 * huge ? huge : line;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    if (whole < bytes) throw std::bad_alloc();
    memory_.reset(std::aligned_alloc(alignment, whole ? whole : alignment));
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == huge) madvise(memory_.get(), whole, MADV_HUGEPAGE);  // a hint: refusing it is no error
#endif
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
