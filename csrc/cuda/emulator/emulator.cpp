// The scheduler of an emulated block, and what threads do together.
#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "cuda/emulator/block.h"
#include "cuda/emulator/fiber.h"
#include "cuda/interface.h"

namespace metatasnet::emulated {
namespace {

constexpr int kBlocksAtOnce = 4;
constexpr unsigned kBurst = 24;  // steps of a block before another may continue

thread_local unsigned chosen_order = 0;
thread_local std::vector<Recorded>* recording = nullptr;

// A value in memory that a published one replaced, with the time and the block. Time counts the fences of a launch.
struct Replaced {
  std::uint64_t time;
  std::array<int, 3> by;
  float value;
};

thread_local std::unordered_map<const float*, std::vector<Replaced>> replaced;
thread_local std::uint64_t now = 0;

// A point where threads wait for each other. The values they bring are kept per generation, because the first thread to
// leave may already bring the next one.
struct Meeting {
  int expected = 0;
  int arrived = 0;
  std::uint64_t generation = 0;
};

struct Operands {
  double value;
  int row;
  std::uint32_t a[4], b[2];
  float d[4];
};

struct Warp {
  Meeting meeting;
  Operands operands[2][kWarp];
};

}  // namespace

// The threads of one block.
class BlockThreads {
 public:
  // Puts every thread at the beginning of `kernel`. `seed` determines the order in which they continue.
  void begin(int x, int y, int z, int threads, std::size_t shared_bytes, const std::function<void(Block&)>& kernel,
             unsigned seed) {
    shared_.assign(shared_bytes / sizeof(Words) + 1, Words{{~0u, ~0u, ~0u, ~0u}});  // NaN, also as bfloat16
    warps_.resize((threads + kWarp - 1) / kWarp);
    for (Warp& warp : warps_) warp.meeting = {kWarp, 0, 0};
    everybody_ = {threads, 0, 0};
    while (static_cast<int>(fibers_.size()) < threads) fibers_.push_back(std::make_unique<Fiber>());
    waits_.assign(threads, Wait{});
    for (int t = 0; t < threads; ++t) {
      fibers_[t]->start([this, t, x, y, z, &kernel] {
        try {
          Block block(*this, t, x, y, z);
          kernel(block);
          block.fence();
        } catch (...) {
          error_ = std::current_exception();
        }
      });
    }
    order_.resize(threads);
    std::iota(order_.begin(), order_.end(), 0);
    if (chosen_order == 1) std::reverse(order_.begin(), order_.end());
    random_.seed(seed);
    left_ = threads;
    next_ = 0;
    progress_ = true;
  }

  // Lets threads continue until they wait: all of them, or those of one warp if warps drift apart. Returns false when
  // all have ended.
  bool step() {
    const int threads = static_cast<int>(order_.size()), together = drift() ? kWarp : threads;
    if (next_ == 0) arrange();
    for (bool moved = true; moved; moved = moved && drift()) {
      moved = false;
      for (int i = next_; i < std::min(threads, next_ + together); ++i) {
        const int t = order_[i];
        const Wait& wait = waits_[t];
        if (fibers_[t]->done() || (wait.meeting && wait.meeting->generation == wait.generation)) continue;
        progress_ = moved = true;
        fibers_[t]->resume();
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
        if (fibers_[t]->done()) --left_;
      }
    }
    next_ = next_ + together < threads ? next_ + together : 0;
    return left_ > 0;
  }

  char* shared() { return reinterpret_cast<char*>(shared_.data()); }
  Warp& warp(int thread) { return warps_[thread / kWarp]; }
  Meeting& everybody() { return everybody_; }

  // Waits until all have arrived; the last one runs `work` first.
  template <class Work>
  void meet(int thread, Meeting& meeting, Work work) {
    const std::uint64_t generation = meeting.generation;
    if (++meeting.arrived == meeting.expected) {
      work();
      meeting.arrived = 0;
      ++meeting.generation;
      return;
    }
    waits_[thread] = {&meeting, generation};
    while (meeting.generation == generation) fibers_[thread]->pause();
  }

 private:
  struct Wait {
    const Meeting* meeting = nullptr;
    std::uint64_t generation = 0;
  };

  // Odd orders let warps drift apart: one runs as far as it can before another begins.
  static bool drift() { return chosen_order > 1 && chosen_order % 2 == 1; }

  // Called before every thread gets its turn.
  void arrange() {
    if (!progress_) {
      throw std::logic_error(std::to_string(left_) + " of " + std::to_string(order_.size()) +
                             " threads of an emulated block wait for others that ended or wait elsewhere.");
    }
    progress_ = false;
    if (chosen_order > 1) std::shuffle(order_.begin(), order_.end(), random_);
    if (!drift()) return;
    std::vector<int> rank((order_.size() + kWarp - 1) / kWarp);
    std::iota(rank.begin(), rank.end(), 0);
    std::shuffle(rank.begin(), rank.end(), random_);
    std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return rank[a / kWarp] < rank[b / kWarp]; });
  }

  std::vector<int> order_;  // of the threads' turns
  std::mt19937 random_;
  int left_ = 0, next_ = 0;  // threads that have not ended, and the one whose turn it is
  bool progress_ = true;     // since every thread had its turn
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Wait> waits_;
  std::vector<Words> shared_;
  std::vector<Warp> warps_;
  Meeting everybody_;
  std::exception_ptr error_;
};

namespace {

// Elements of a word: two bfloat16 or one tf32.
int unpack(std::uint32_t word, bool bfloat16, float* to) {
  if (!bfloat16) {
    to[0] = as_float(word & 0xffffe000u);  // the hardware ignores the lower bits
    return 1;
  }
  to[0] = low_bfloat16(word);
  to[1] = high_bfloat16(word);
  return 2;
}

// Drops what a float32 cannot hold, as tensor cores do.
// Source: Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores".
float cut(double value) {
  const float near = static_cast<float>(value);
  const bool above = std::isfinite(near) && std::fabs(static_cast<double>(near)) > std::fabs(value);
  return above ? as_float(as_bits(near) - 1) : near;
}

void multiply_fragments(Operands (&lanes)[kWarp], bool bfloat16) {
  const int each = bfloat16 ? 2 : 1;
  float a[kFragmentRows][kFragmentWords * 2], b[kFragmentWords * 2][kFragmentColumns];
  double d[kFragmentRows][kFragmentColumns];
  for (int l = 0; l < kWarp; ++l) {
    for (int r = 0; r < 4; ++r) unpack(lanes[l].a[r], bfloat16, &a[a_row(l, r)][a_word(l, r) * each]);
    for (int r = 0; r < 2; ++r) {
      float values[2];
      unpack(lanes[l].b[r], bfloat16, values);
      for (int j = 0; j < each; ++j) b[b_word(l, r) * each + j][b_column(l, r)] = values[j];
    }
    for (int r = 0; r < 4; ++r) d[d_row(l, r)][d_column(l, r)] = lanes[l].d[r];
  }
  for (int k = 0; k < kFragmentWords * each; ++k) {
    for (int i = 0; i < kFragmentRows; ++i) {
      for (int j = 0; j < kFragmentColumns; ++j) d[i][j] += double{a[i][k]} * b[k][j];
    }
  }
  for (int l = 0; l < kWarp; ++l) {
    for (int r = 0; r < 4; ++r) lanes[l].d[r] = cut(d[d_row(l, r)][d_column(l, r)]);
  }
}

}  // namespace

char* Block::shared() const { return threads_->shared(); }

void Block::sync() {
  threads_->meet(thread_, threads_->everybody(), [] {});
}

void Block::fence() {
  fenced_ = ++now;
  for (const auto& [to, value] : published_) {
    replaced[to].push_back({now, {x_, y_, z_}, *to});
    *to = value;
  }
  published_.clear();
}

float Block::load_written(const float* from) const {
  const auto found = replaced.find(from);
  if (found == replaced.end()) return *from;
  for (const Replaced& old : found->second) {
    if (old.time > fenced_ && old.by != std::array<int, 3>{x_, y_, z_}) return old.value;
  }
  return *from;
}

float Block::shuffle(float value, int lane) {
  Warp& warp = threads_->warp(thread_);
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[this->lane()].value = value;
  threads_->meet(thread_, warp.meeting, [] {});
  return static_cast<float>(operands[lane % kWarp].value);
}

double Block::shuffle_xor(double value, int mask) {
  Warp& warp = threads_->warp(thread_);
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].value = value;
  threads_->meet(thread_, warp.meeting, [] {});
  return operands[lane() ^ mask].value;
}

void Block::copy_async(int to, const void* from, bool valid) {
  if (to % 16 || (valid && reinterpret_cast<std::uintptr_t>(from) % 16)) {
    throw std::logic_error("An asynchronous copy is not aligned to 16 bytes.");
  }
  open_.push_back({to, from, valid});
}

void Block::commit() {
  groups_.push_back(std::move(open_));
  open_.clear();
}

void Block::arrive(std::size_t pending) {
  while (groups_.size() > pending) {
    for (const Copy& copy : groups_.front()) {
      if (copy.valid) std::memcpy(shared() + copy.to, copy.from, 16);
      if (!copy.valid) std::memset(shared() + copy.to, 0, 16);
    }
    groups_.erase(groups_.begin());
  }
}

void Block::load_matrices(std::uint32_t (&registers)[4], int row) {
  Warp& warp = threads_->warp(thread_);
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].row = row;
  threads_->meet(thread_, warp.meeting, [] {});
  for (int r = 0; r < 4; ++r) {
    const char* words = shared() + operands[matrix_source(lane(), r)].row;
    std::memcpy(&registers[r], words + 4 * matrix_word(lane()), 4);
  }
}

void Block::multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bool bfloat16) {
  Warp& warp = threads_->warp(thread_);
  auto& operands = warp.operands[warp.meeting.generation % 2];
  Operands& own = operands[lane()];
  std::copy(a, a + 4, own.a);
  std::copy(b, b + 2, own.b);
  std::copy(d, d + 4, own.d);
  threads_->meet(thread_, warp.meeting, [&] { multiply_fragments(operands, bfloat16); });
  std::copy(own.d, own.d + 4, d);
}

void Block::mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply(d, a, b, true);
}

void Block::mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply(d, a, b, false);
}

void set_order(unsigned order) { chosen_order = order; }

void record_to(std::vector<Recorded>* launches) { recording = launches; }

bool record(Recorded launch) {
  if (recording) recording->push_back(std::move(launch));
  return recording != nullptr;
}

void emulate(int x, int y, int z, int threads, std::size_t shared_bytes, const std::function<void(Block&)>& kernel) {
  // Odd orders interleave blocks in bursts, as multiprocessors would; the others run one block after the other.
  static thread_local std::array<BlockThreads, kBlocksAtOnce> slots;  // they keep their stacks
  replaced.clear();
  now = 0;
  std::vector<int> order(static_cast<std::size_t>(x) * y * z);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(chosen_order);
  if (chosen_order == 1) std::reverse(order.begin(), order.end());
  if (chosen_order > 1) std::shuffle(order.begin(), order.end(), random);
  std::vector<BlockThreads*> running;
  std::vector<BlockThreads*> free;
  const bool interleave = chosen_order > 1 && chosen_order % 2 == 1;
  for (BlockThreads& slot : slots) {
    if (interleave || free.empty()) free.push_back(&slot);
  }
  for (std::size_t next = 0; next < order.size() || !running.empty();) {
    while (next < order.size() && !free.empty()) {
      const int b = order[next++];
      free.back()->begin(b % x, b / x % y, b / (x * y), threads, shared_bytes, kernel, random());
      running.push_back(free.back());
      free.pop_back();
    }
    const std::size_t which = interleave ? random() % running.size() : 0;
    bool more = true;
    for (unsigned steps = interleave ? 1 + random() % kBurst : kBurst; more && steps > 0; --steps) {
      more = running[which]->step();
    }
    if (more) continue;
    free.push_back(running[which]);
    running.erase(running.begin() + static_cast<std::ptrdiff_t>(which));
  }
}

}  // namespace metatasnet::emulated
