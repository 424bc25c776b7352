// Memory that is reused from call to call, as new pages from the system cost more than the computation on them: 0.4 ms
// a megabyte if huge pages are not given by default, a tenth of a training step.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cpu/buffer.h"

namespace metatasnet {

class MemoryPool;

// A part of a pool, returned to it when this object ends; null if none was taken.
class Block {
 public:
  Block() = default;
  Block(std::shared_ptr<MemoryPool> pool, char* memory) : pool_(std::move(pool)), memory_(memory) {}
  Block(Block&& other) noexcept : pool_(std::move(other.pool_)), memory_(std::exchange(other.memory_, nullptr)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Block();

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(memory_);
  }

 private:
  std::shared_ptr<MemoryPool> pool_;
  char* memory_ = nullptr;
};

// Finds the free piece that fits best, in segments that came from the system; neighbouring free pieces are merged.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
 public:
  // Returns a block of at least `bytes`, which is not cleared.
  Block take(std::size_t bytes);

  template <class T>
  Block take_of(std::size_t count) {
    return take(count * sizeof(T));
  }

  // Return the segments of which nothing is in use to the system.
  void trim();

 private:
  friend class Block;

  struct Piece {
    std::size_t bytes;
    bool first;  // first of its segment: the piece before it in the list is not its neighbour in memory
    bool used;
  };
  using Pieces = std::map<char*, Piece>;

  void give(char* memory);
  bool whole_segment(Pieces::const_iterator piece) const;
  Pieces::iterator release(Pieces::iterator piece);
  void forget(Pieces::const_iterator piece);
  Block use(Pieces::iterator piece, std::size_t bytes);

  std::mutex mutex_;
  Pieces pieces_;
  std::multimap<std::size_t, char*> free_;
  std::map<char*, Buffer> segments_;
};

}  // namespace metatasnet
