// A block of threads on the host: every thread is a fiber that runs until it waits for others.
//
// Strict where a GPU may be lucky: shared memory begins as NaN, background copies and published values arrive as late as
// they may, and the order in which threads and blocks run can be chosen (set_order), so that a missing barrier or fence
// changes results. Sums of a wgmma are NaN until they are waited for, and it is an error if its operands change before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/wgmma_layout.h"

namespace metatasnet::emulated {

class BlockThreads;

class Block {
 public:
  // `rank`: the number of the block in its cluster, whose threads run together as `threads`.
  Block(BlockThreads& threads, int rank, int thread, int x, int y, int z)
      : threads_(&threads), rank_(rank), thread_(thread), x_(x), y_(y), z_(z) {}

  int thread() const { return thread_; }
  void forget() {}
  int lane() const { return thread_ % kWarp; }
  int warp() const { return thread_ / kWarp; }
  int x() const { return x_; }
  int y() const { return y_; }
  int z() const { return z_; }

  char* shared() const;
  void sync();
  void sync_warp();

  // A published value waits in the thread's own buffer until the thread calls fence() or ends, and a thread reads what
  // other blocks had published when it called fence() the last time. So if a fence is missing on either side, a block
  // reads the old value, as it may on a GPU. All other writes reach memory at once.
  void publish(float* to, float value) { published_.emplace_back(reinterpret_cast<std::uint32_t*>(to), as_bits(value)); }
  void publish(Words* to, const Words& words);
  void fence();
  int increment(int* count) { return (*count)++; }
  float load_written(const float* from) const {
    return as_float(written(reinterpret_cast<const std::uint32_t*>(from)));
  }
  Words load_written(const Words* from) const;
  void await(const int* count, int least);

  int uniform(int value);
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
  void store_matrices(const std::uint32_t (&registers)[4], int row);
  void load_transposed(std::uint32_t (&registers)[4], int row);
  void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
  void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const float (&c)[4]);
  void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[2], std::uint32_t b) {
    multiply(d, {a[0], a[1], 0, 0}, {b, 0}, true);
  }
  void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

  int rank() const { return rank_; }
  void sync_cluster();

  void init_barrier(int at, int arrivals);
  void publish_barriers();
  void arrive_expecting(int at, int bytes);
  void arrive_at(int at, int rank);
  void wait_phase(int at, int parity);
  void copy_box(int to, const TensorMap& map, int at, int x, int y, int z) {
    copy_box_to(to, map, at, x, y, z, static_cast<std::uint16_t>(1 << rank_));
  }
  void copy_box_to(int to, const TensorMap& map, int at, int x, int y, int z, std::uint16_t ranks);

  void publish_operands() {}
  void begin_products() { begun_ = true; }
  template <int fragments>
  void multiply(float (&d)[fragments][4], int a, int b) {
    multiply(&d[0][0], fragments, kDescriptorBytes * a, kDescriptorBytes * b);
  }
  void commit_products() { ++commits_; }
  template <int pending>
  void wait_products() {
    finish_products(pending);
  }
  template <int fragments>
  void pin(float (&)[fragments][4]) const {}
  // Called when the thread ends.
  void end();

 private:
  // Sums of products that are under way, and the number of commits before the last of them.
  struct Sums {
    float* d;
    std::vector<float> values;
    int group;
  };
  struct Copy {
    int to;
    const void* from;
    bool valid;
  };

  std::uint32_t written(const std::uint32_t* from) const;
  void arrive(std::size_t pending);
  void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bool bfloat16);

  void multiply(float* d, int fragments, int a, int b);
  void finish_products(int pending);
  int fiber() const;

  BlockThreads* threads_;
  int rank_, thread_, x_, y_, z_;
  std::vector<std::pair<std::uint32_t*, std::uint32_t>> published_;
  std::uint64_t fenced_ = 0;  // time of the last fence
  std::vector<Copy> open_;
  std::vector<std::vector<Copy>> groups_;
  std::vector<Sums> sums_;
  int commits_ = 0;
  bool begun_ = false;
};

// The order in which blocks run and the threads of a block are resumed: 0 ascending, 1 descending, others shuffle. Odd
// ones beyond 1 let warps of a block drift apart, and interleave four blocks in bursts.
void set_order(unsigned order);

// Runs `kernel` for every thread of a grid of blocks, of which `cluster` along x are a cluster; all blocks at once if they run
// `together`. Throws std::logic_error where threads wait for others that never come.
void emulate(int x, int y, int z, int threads, std::size_t shared_bytes, const std::function<void(Block&)>& kernel,
             int cluster = 1, bool together = false);

}  // namespace metatasnet::emulated
