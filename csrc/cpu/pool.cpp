#include "cpu/pool.h"

#include <algorithm>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace metatasnet {
namespace {

constexpr std::size_t kStep = std::size_t{1} << 18;

// With the address sanitizer every block comes from the system, so that an access beyond its end is reported.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kShared = false;
#else
constexpr bool kShared = true;
#endif

}  // namespace

Block::~Block() {
  if (pool_) pool_->give(memory_);
}

// The rest of a free piece that is not used stays free.
Block MemoryPool::use(Pieces::iterator piece, std::size_t bytes) {
  const auto [memory, found] = *piece;
  piece->second = {bytes, found.first, true};
  if (found.bytes > bytes) {
    pieces_[memory + bytes] = {found.bytes - bytes, false, false};
    free_.emplace(found.bytes - bytes, memory + bytes);
  }
  return {shared_from_this(), memory};
}

Block MemoryPool::take(std::size_t bytes) {
  const std::size_t room = kShared ? std::max<std::size_t>(1, (bytes + kStep - 1) / kStep) * kStep : bytes;
  if (kShared) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(room);
    if (found != free_.end()) {
      const auto piece = pieces_.find(found->second);
      free_.erase(found);
      return use(piece, room);
    }
  }
  trim();  // no free piece is large enough
  Buffer fresh(room);
  char* const memory = fresh.as<char>();
  const std::lock_guard<std::mutex> lock(mutex_);
  segments_.emplace(memory, std::move(fresh));
  return use(pieces_.emplace(memory, Piece{room, true, true}).first, room);
}

void MemoryPool::give(char* memory) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto piece = pieces_.find(memory);
  piece->second.used = false;
  const auto next = std::next(piece);
  if (next != pieces_.end() && !next->second.first && !next->second.used) {
    forget(next);
    piece->second.bytes += next->second.bytes;
    pieces_.erase(next);
  }
  if (!piece->second.first && !std::prev(piece)->second.used) {
    const auto before = std::prev(piece);
    forget(before);
    before->second.bytes += piece->second.bytes;
    pieces_.erase(piece);
    piece = before;
  }
  free_.emplace(piece->second.bytes, piece->first);
  if (!kShared) release(piece);
}

// Returns a free segment to the system; the result is the piece after it.
MemoryPool::Pieces::iterator MemoryPool::release(Pieces::iterator piece) {
  forget(piece);
  segments_.erase(piece->first);
  return pieces_.erase(piece);
}

void MemoryPool::forget(Pieces::const_iterator piece) {
  const auto [begin, end] = free_.equal_range(piece->second.bytes);
  free_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == piece->first; }));
}

bool MemoryPool::whole_segment(Pieces::const_iterator piece) const {
  const auto next = std::next(piece);
  return piece->second.first && !piece->second.used && (next == pieces_.end() || next->second.first);
}

void MemoryPool::trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::size_t before = segments_.size();
  for (auto piece = pieces_.begin(); piece != pieces_.end();) {
    piece = whole_segment(piece) ? release(piece) : std::next(piece);
  }
#if defined(__GLIBC__)
  if (segments_.size() < before) malloc_trim(0);  // otherwise the process would keep freed blocks below 32 MiB
#else
  static_cast<void>(before);
#endif
}

}  // namespace metatasnet
