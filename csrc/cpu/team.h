// Threads for one call: those of the OpenMP runtime that PyTorch computes with, else threads that the call starts and
// joins. Between calls this library has no threads of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace metatasnet {

// Holds `parties` threads until the last of them arrives. With one party it costs nothing.
class Barrier {
 public:
  explicit Barrier(int parties) : parties_(parties) {}
  void wait();

 private:
  const int parties_;
  int arrived_ = 0;
  std::atomic<std::uint32_t> generation_{0};
  std::mutex mutex_;
  std::condition_variable condition_;
};

// Run body(0) ... body(threads - 1) at the same time, body(0) on the caller's thread.
// `threads` may turn out smaller if the system refuses more: `prepare(threads)` gets the number before any body
// runs. An exception in a body is thrown here again, after all bodies ended; bodies that share a barrier must not throw.
void run_team(int threads, const std::function<void(int)>& prepare, const std::function<void(int)>& body);

// Threads for each unit of work: the split that leaves the fewest idle, and of equal ones the smallest (fewest
// barriers).
int team_size(std::int64_t units, int threads);

// A counter from which threads draw work. Results must not depend on which thread drew which ticket.
class Tickets {
 public:
  explicit Tickets(std::int64_t count) : count_(count) {}
  // The next ticket, or -1 if none is left.
  std::int64_t draw() {
    const std::int64_t ticket = next_.fetch_add(1, std::memory_order_relaxed);
    return ticket < count_ ? ticket : -1;
  }

 private:
  const std::int64_t count_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace metatasnet
