// A block of threads on the host: every thread is a fiber that runs until it waits for others.
//
// Strict where a GPU may be lucky: shared memory begins as NaN, background copies and published values arrive as late as
// they may, and the order in which threads and blocks run can be chosen (set_order), so that a missing barrier or fence
// changes results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/mma_layout.h"

namespace metatasnet::emulated {

class BlockThreads;

class Block {
 public:
  Block(BlockThreads& threads, int thread, int x, int y, int z)
      : threads_(&threads), thread_(thread), x_(x), y_(y), z_(z) {}

  int thread() const { return thread_; }
  void forget() {}
  int lane() const { return thread_ % kWarp; }
  int warp() const { return thread_ / kWarp; }
  int x() const { return x_; }
  int y() const { return y_; }
  int z() const { return z_; }

  char* shared() const;
  void sync();

  // A published value waits in the thread's own buffer until the thread calls fence() or ends, and a thread reads what
  // other blocks had published when it called fence() the last time. So if a fence is missing on either side, a block
  // reads the old value, as it may on a GPU. All other writes reach memory at once.
  void publish(float* to, float value) { published_.emplace_back(to, value); }
  void fence();
  int increment(int* count) { return (*count)++; }
  float load_written(const float* from) const;

  float shuffle(float value, int lane);
  float shuffle_xor(float value, int mask) { return shuffle(value, lane() ^ mask); }
  double shuffle_xor(double value, int mask);

  void copy_async(int to, const void* from, bool valid);
  void commit();
  template <int pending>
  void wait() {
    arrive(pending);
  }

  void load_matrices(std::uint32_t (&registers)[4], int row);
  void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
  void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

 private:
  struct Copy {
    int to;
    const void* from;
    bool valid;
  };

  void arrive(std::size_t pending);
  void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bool bfloat16);

  BlockThreads* threads_;
  int thread_, x_, y_, z_;
  std::vector<std::pair<float*, float>> published_;
  std::uint64_t fenced_ = 0;  // time of the last fence
  std::vector<Copy> open_;
  std::vector<std::vector<Copy>> groups_;
};

// The order in which blocks run and the threads of a block are resumed: 0 ascending, 1 descending, others shuffle. Odd
// ones beyond 1 let warps of a block drift apart, and interleave four blocks in bursts.
void set_order(unsigned order);

// Runs `kernel` for every thread of a grid of blocks. Throws std::logic_error where threads
// wait for others that never come.
void emulate(int x, int y, int z, int threads, std::size_t shared_bytes, const std::function<void(Block&)>& kernel);

}  // namespace metatasnet::emulated
