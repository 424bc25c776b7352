// The scheduler of an emulated block, and what threads do together.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
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
constexpr std::size_t kPatience = 64;  // turns of each block, at random, without progress: then none can continue

thread_local unsigned chosen_order = 0;
thread_local int chosen_multiprocessors = 132;
thread_local std::vector<Recorded>* recording = nullptr;

// A value in memory that a published one replaced, with the time and the block. Time counts the fences of a launch.
struct Replaced {
  std::uint64_t time;
  std::array<int, 3> by;
  std::uint32_t value;
};

thread_local std::unordered_map<const std::uint32_t*, std::vector<Replaced>> replaced;
thread_local std::uint64_t now = 0;

// A point where threads wait for each other. The values they bring are kept per generation, because the first thread to
// leave may already bring the next one.
struct Meeting {
  int expected = 0;
  int arrived = 0;
  std::uint64_t generation = 0;
};

// A box that TMA copies, to an address on the host.
struct Box {
  const TensorMap* map;
  int x, y, z;
  char* to;
};

struct Barrier {
  Meeting phase;
  std::int64_t bytes = 0;  // announced and not yet copied
  bool published = false;
  std::vector<Box> coming, copied;  // of this phase, and of those that ended: they land when a thread waits for them

  void settle() {
    if (phase.arrived > phase.expected) throw std::logic_error("More arrive at an mbarrier than it counts.");
    if (phase.arrived < phase.expected || bytes != 0) return;
    copied.insert(copied.end(), coming.begin(), coming.end());
    coming.clear();
    phase.arrived = 0;
    ++phase.generation;
  }
};

struct BlockMemory {
  std::vector<Words> shared;
  Meeting everybody;
  std::unordered_map<int, Barrier> barriers;

  char* bytes() { return reinterpret_cast<char*>(shared.data()); }
  Barrier& barrier(int at) {
    const auto found = barriers.find(at);
    if (found == barriers.end()) throw std::logic_error("An mbarrier is used before it is made.");
    return found->second;
  }
};

// Operands of a warp's part of a wgmma as they were when it was issued.
struct Read {
  std::uint64_t a, b;
  std::vector<std::uint32_t> rows, columns;  // eight words each
  int group;
};

struct Operands {
  double value;
  int row;
  std::uint32_t a[4], b[2];
  float d[4];
  std::uint64_t descriptors[2];
  float* sums;
};

struct Warp {
  Meeting meeting;
  Operands operands[2][kWarp];
  std::vector<Read> reads;
};

}  // namespace

// The threads of one cluster of blocks, block after block.
class BlockThreads {
 public:
  // Puts every thread at the beginning of `kernel`; x is that of the first block, which has `each` threads. `seed` determines
  // the order in which they continue.
  void begin(int x, int y, int z, int each, int cluster, std::size_t shared_bytes,
             const std::function<void(Block&)>& kernel, unsigned seed) {
    const int threads = each * cluster;
    const Words nan{{~0u, ~0u, ~0u, ~0u}};  // also as bfloat16
    blocks_.clear();
    for (int rank = 0; rank < cluster; ++rank) {
      blocks_.push_back({std::vector<Words>(shared_bytes / sizeof(Words) + 1, nan), {each, 0, 0}, {}});
    }
    warps_.clear();
    warps_.resize((threads + kWarp - 1) / kWarp);
    for (Warp& warp : warps_) warp.meeting = {kWarp, 0, 0};
    everybody_ = {threads, 0, 0};
    while (static_cast<int>(fibers_.size()) < threads) fibers_.push_back(std::make_unique<Fiber>());
    waits_.assign(threads, Wait{});
    for (int t = 0; t < threads; ++t) {
      fibers_[t]->start([this, t, each, x, y, z, &kernel] {
        try {
          Block block(*this, t / each, t % each, x + t / each, y, z);
          kernel(block);
          block.end();
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
    stalled_ = false;
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
        if (fibers_[t]->done() || waits_[t].waits()) continue;
        progress_ = moved = true;
        fibers_[t]->resume();
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
        if (fibers_[t]->done()) --left_;
      }
    }
    next_ = next_ + together < threads ? next_ + together : 0;
    return left_ > 0;
  }

  int of_a_block() const { return static_cast<int>(order_.size() / blocks_.size()); }
  BlockMemory& block(int rank) { return blocks_.at(rank); }
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
    await(thread, meeting, generation);
  }

  void await(int thread, const Meeting& meeting, std::uint64_t generation) {
    waits_[thread] = {&meeting, generation};
    while (waits_[thread].waits()) fibers_[thread]->pause();
  }

  // Waits for a count that other blocks increase.
  void await(int thread, const int* count, int least) {
    waits_[thread] = {nullptr, 0, count, least};
    while (waits_[thread].waits()) fibers_[thread]->pause();
    waits_[thread] = {};
  }

  // No thread can continue before another block increases a count.
  bool stalled() const { return stalled_; }

 private:
  struct Wait {
    const Meeting* meeting = nullptr;
    std::uint64_t generation = 0;
    const int* count = nullptr;
    int least = 0;

    bool waits() const { return (meeting && meeting->generation == generation) || (count && *count < least); }
  };

  // Odd orders let warps drift apart: one runs as far as it can before another begins.
  static bool drift() { return chosen_order > 1 && chosen_order % 2 == 1; }

  // Called before every thread gets its turn.
  void arrange() {
    const auto counts = [](const Wait& wait) { return wait.count != nullptr; };
    stalled_ = !progress_ && std::any_of(waits_.begin(), waits_.end(), counts);
    if (!progress_ && !stalled_) {
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
  bool stalled_ = false;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Wait> waits_;
  std::vector<BlockMemory> blocks_;
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

// Writes a box as TMA does: rows of 128 bytes, swizzled by their place in shared memory, which begins at `shared`; zeros for
// what is not in the matrix.
void land(const Box& box, const char* shared) {
  const TensorMap& map = *box.map;
  const int start = static_cast<int>(box.to - shared);
  for (std::uint32_t row = 0; row < map.box[1]; ++row) {
    for (std::uint32_t column = 0; column < map.box[0]; ++column) {
      const std::int64_t x = box.x + std::int64_t{column}, y = box.y + std::int64_t{row};
      const auto in = [&](std::int64_t at, int k) { return at >= 0 && at < static_cast<std::int64_t>(map.sizes[k]); };
      char* const to = box.to - start + swizzled(start + static_cast<int>(row) * kRowBytes + static_cast<int>(column) * 2);
      std::memset(to, 0, 2);
      if (!in(x, 0) || !in(y, 1) || !in(box.z, 2)) continue;
      std::memcpy(to, static_cast<const char*>(map.data) + box.z * map.strides[1] + y * map.strides[0] + x * 2, 2);
    }
  }
}

// Words of `count` rows of an operand from row `first` on.
std::vector<std::uint32_t> operand_rows(const char* shared, std::uint64_t descriptor, int first, int count) {
  if (descriptor != matrix_descriptor(static_cast<int>(descriptor & 0x3fff) << 4)) {
    throw std::logic_error("A matrix descriptor does not name rows of 128 bytes with their swizzle.");
  }
  const int start = static_cast<int>(descriptor & 0x3fff) << 4;
  std::vector<std::uint32_t> words(count * kFragmentWords);
  for (int row = 0; row < count; ++row) {
    const int at = start + (first + row) * kRowBytes;  // eight rows of 128 bytes are the distance of eight rows
    for (int half = 0; half < 2; ++half) {
      std::memcpy(&words[row * kFragmentWords + 4 * half], shared + swizzled(at + 16 * half), 16);
    }
  }
  return words;
}

// Adds a warp's part of a wgmma to the sums of its lanes, which are cut after each as tensor cores do.
void multiply_rows(Operands (&lanes)[kWarp], const Read& read) {
  const int columns = static_cast<int>(read.columns.size()) / kFragmentWords;
  const auto value = [](const std::vector<std::uint32_t>& words, int row, int k) {
    const std::uint32_t word = words[row * kFragmentWords + k / 2];
    return double{k % 2 ? high_bfloat16(word) : low_bfloat16(word)};
  };
  std::vector<double> d(kFragmentRows * columns);
  const auto each = [&](auto body) {
    for (int l = 0; l < kWarp; ++l) {
      for (int j = 0; j < columns / kFragmentColumns; ++j) {
        for (int r = 0; r < 4; ++r) {
          body(lanes[l].sums[4 * j + r], d[d_row(l, r) * columns + kFragmentColumns * j + d_column(l, r)]);
        }
      }
    }
  };
  each([](float& sum, double& of) { of = sum; });
  std::vector<double> factors(columns);
  for (int k = 0; k < 2 * kFragmentWords; ++k) {
    for (int column = 0; column < columns; ++column) factors[column] = value(read.columns, column, k);
    for (int row = 0; row < kFragmentRows; ++row) {
      const double factor = value(read.rows, row, k);
      for (int column = 0; column < columns; ++column) d[row * columns + column] += factor * factors[column];
    }
  }
  each([](float& sum, double& of) { sum = cut(of); });
}

}  // namespace

int Block::fiber() const { return rank_ * threads_->of_a_block() + thread_; }

char* Block::shared() const { return threads_->block(rank_).bytes(); }

void Block::sync() {
  threads_->meet(fiber(), threads_->block(rank_).everybody, [] {});
}

void Block::sync_warp() {
  threads_->meet(fiber(), threads_->warp(fiber()).meeting, [] {});
}

void Block::sync_cluster() {
  threads_->meet(fiber(), threads_->everybody(), [] {});
}

void Block::end() {
  fence();
  if (!sums_.empty()) throw std::logic_error("A thread ends before the products that it began.");
}

void Block::fence() {
  fenced_ = ++now;
  for (const auto& [to, value] : published_) {
    replaced[to].push_back({now, {x_, y_, z_}, *to});
    *to = value;
  }
  published_.clear();
}

void Block::publish(Words* to, const Words& words) {
  for (int k = 0; k < 4; ++k) published_.emplace_back(&to->word[k], words.word[k]);
}

Words Block::load_written(const Words* from) const {
  Words words;
  for (int k = 0; k < 4; ++k) words.word[k] = written(&from->word[k]);
  return words;
}

void Block::await(const int* count, int least) { threads_->await(fiber(), count, least); }

std::uint32_t Block::written(const std::uint32_t* from) const {
  const auto found = replaced.find(from);
  if (found == replaced.end()) return *from;
  for (const Replaced& old : found->second) {
    if (old.time > fenced_ && old.by != std::array<int, 3>{x_, y_, z_}) return old.value;
  }
  return *from;
}

int Block::uniform(int value) {
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].row = value;
  threads_->meet(fiber(), warp.meeting, [] {});
  for (const Operands& other : operands) {
    if (other.row != value) throw std::logic_error("A number that a warp shares is not the same in all of its threads.");
  }
  return value;
}

float Block::shuffle(float value, int lane) {
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[this->lane()].value = value;
  threads_->meet(fiber(), warp.meeting, [] {});
  return static_cast<float>(operands[lane % kWarp].value);
}

double Block::shuffle_xor(double value, int mask) {
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].value = value;
  threads_->meet(fiber(), warp.meeting, [] {});
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
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].row = row;
  threads_->meet(fiber(), warp.meeting, [] {});
  for (int r = 0; r < 4; ++r) {
    const char* words = shared() + operands[matrix_source(lane(), r)].row;
    std::memcpy(&registers[r], words + 4 * matrix_word(lane()), 4);
  }
}

void Block::store_matrices(const std::uint32_t (&registers)[4], int row) {
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].row = row;
  threads_->meet(fiber(), warp.meeting, [] {});
  for (int r = 0; r < 4; ++r) {
    std::memcpy(shared() + operands[8 * r + lane() / 4].row + 4 * (lane() % 4), &registers[r], 4);
  }
}

void Block::load_transposed(std::uint32_t (&registers)[4], int row) {
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].row = row;
  threads_->meet(fiber(), warp.meeting, [] {});
  for (int r = 0; r < 4; ++r) {
    std::uint16_t values[2];
    for (int k = 0; k < 2; ++k) {
      const char* const words = shared() + operands[8 * r + lane() % 4 * 2 + k].row;
      std::memcpy(&values[k], words + lane() / 4 * 2, 2);
    }
    registers[r] = values[0] | static_cast<std::uint32_t>(values[1]) << 16;
  }
}

void Block::multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bool bfloat16) {
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  Operands& own = operands[lane()];
  std::copy(a, a + 4, own.a);
  std::copy(b, b + 2, own.b);
  std::copy(d, d + 4, own.d);
  threads_->meet(fiber(), warp.meeting, [&] { multiply_fragments(operands, bfloat16); });
  std::copy(own.d, own.d + 4, d);
}

void Block::mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply(d, a, b, true);
}

void Block::mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const float (&c)[4]) {
  std::copy(c, c + 4, d);
  multiply(d, a, b, true);
}

void Block::mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply(d, a, b, false);
}

void Block::init_barrier(int at, int arrivals) {
  if (at % 8) throw std::logic_error("An mbarrier is not at a multiple of 8.");
  threads_->block(rank_).barriers[at].phase.expected = arrivals;
}

void Block::publish_barriers() {
  for (auto& [at, barrier] : threads_->block(rank_).barriers) barrier.published = true;
}

void Block::arrive_expecting(int at, int bytes) {
  Barrier& barrier = threads_->block(rank_).barrier(at);
  barrier.bytes += bytes;
  ++barrier.phase.arrived;
  barrier.settle();
}

void Block::arrive_at(int at, int rank) {
  Barrier& barrier = threads_->block(rank).barrier(at);
  if (rank != rank_ && !barrier.published) throw std::logic_error("An mbarrier is not known to the cluster.");
  ++barrier.phase.arrived;
  barrier.settle();
}

void Block::wait_phase(int at, int parity) {
  Barrier& barrier = threads_->block(rank_).barrier(at);
  const std::uint64_t generation = barrier.phase.generation;
  if (generation % 2 == static_cast<unsigned>(parity)) threads_->await(fiber(), barrier.phase, generation);
  for (const Box& box : barrier.copied) land(box, shared());
  barrier.copied.clear();
}

void Block::copy_box_to(int to, const TensorMap& map, int at, int x, int y, int z, std::uint16_t ranks) {
  if (to % kSwizzleBytes || map.box[0] * 2 != kRowBytes) throw std::logic_error("A box does not fit the swizzle.");
  const int bytes = static_cast<int>(map.box[1]) * kRowBytes;
  for (int rank = 0; ranks >> rank; ++rank) {
    if (!(ranks >> rank & 1)) continue;
    BlockMemory& block = threads_->block(rank);
    Barrier& barrier = block.barrier(at);
    if (!barrier.published) throw std::logic_error("An mbarrier is not known to TMA.");
    std::memset(block.bytes() + to, 0xff, bytes);  // from now on what was there cannot be read
    barrier.coming.push_back({&map, x, y, z, block.bytes() + to});
    barrier.bytes -= bytes;
    barrier.settle();
  }
}

void Block::multiply(float* d, int fragments, int a, int b) {
  auto own = std::find_if(sums_.begin(), sums_.end(), [&](const Sums& sums) { return sums.d == d; });
  if (own == sums_.end()) {
    if (!begun_) throw std::logic_error("Sums were touched, and no begin_products() came after.");
    own = sums_.insert(own, {d, {d, d + 4 * fragments}, 0});
  }
  own->group = commits_;
  std::fill(d, d + 4 * fragments, std::nanf(""));
  Warp& warp = threads_->warp(fiber());
  auto& operands = warp.operands[warp.meeting.generation % 2];
  operands[lane()].sums = own->values.data();
  operands[lane()].descriptors[0] = matrix_descriptor(a);
  operands[lane()].descriptors[1] = matrix_descriptor(b);
  threads_->meet(fiber(), warp.meeting, [&] {
    for (const Operands& other : operands) {
      if (!std::equal(other.descriptors, other.descriptors + 2, operands[0].descriptors)) {
        throw std::logic_error("The threads of a warp multiply different matrices.");
      }
    }
    const auto [rows, columns] = operands[0].descriptors;
    warp.reads.push_back({rows, columns, operand_rows(shared(), rows, this->warp() % 4 * kFragmentRows, kFragmentRows),
                          operand_rows(shared(), columns, 0, fragments * kFragmentColumns), commits_});
    multiply_rows(operands, warp.reads.back());
  });
}

void Block::finish_products(int pending) {
  const int group = commits_ - pending;  // the first that need not be complete
  Warp& warp = threads_->warp(fiber());
  threads_->meet(fiber(), warp.meeting, [&] {
    for (const Read& read : warp.reads) {
      const int columns = static_cast<int>(read.columns.size()) / kFragmentWords;
      if (operand_rows(shared(), read.a, this->warp() % 4 * kFragmentRows, kFragmentRows) != read.rows ||
          operand_rows(shared(), read.b, 0, columns) != read.columns) {
        throw std::logic_error("Operands changed before their products were complete.");
      }
    }
    const auto complete = [&](const Read& read) { return read.group < group; };
    warp.reads.erase(std::remove_if(warp.reads.begin(), warp.reads.end(), complete), warp.reads.end());
  });
  for (const Sums& sums : sums_) {
    if (sums.group < group) std::copy(sums.values.begin(), sums.values.end(), sums.d);
  }
  const auto complete = [&](const Sums& sums) { return sums.group < group; };
  sums_.erase(std::remove_if(sums_.begin(), sums_.end(), complete), sums_.end());
  begun_ = false;
}

void set_order(unsigned order) { chosen_order = order; }

void set_multiprocessors(int count) { chosen_multiprocessors = count; }

int multiprocessors() { return chosen_multiprocessors; }

void record_to(std::vector<Recorded>* launches) { recording = launches; }

bool record(Recorded launch) {
  if (recording) recording->push_back(std::move(launch));
  return recording != nullptr;
}

void emulate(int x, int y, int z, int threads, std::size_t shared_bytes, const std::function<void(Block&)>& kernel,
             int cluster, bool together) {
  // Odd orders interleave blocks in bursts, as multiprocessors would; the others run one block after the other, or, of blocks
  // that run together, one until it waits for others.
  static thread_local std::vector<std::unique_ptr<BlockThreads>> slots;  // they keep their stacks
  replaced.clear();
  now = 0;
  const int across = x / cluster;
  std::vector<int> order(static_cast<std::size_t>(across) * y * z);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(chosen_order);
  if (chosen_order == 1) std::reverse(order.begin(), order.end());
  if (chosen_order > 1) std::shuffle(order.begin(), order.end(), random);
  const bool interleave = chosen_order > 1 && chosen_order % 2 == 1;
  const std::size_t at_once = together ? order.size() : interleave ? kBlocksAtOnce : 1;
  while (slots.size() < at_once) slots.push_back(std::make_unique<BlockThreads>());
  std::vector<BlockThreads*> running, free;
  for (std::size_t slot = 0; slot < at_once; ++slot) free.push_back(slots[slot].get());
  std::size_t stalled = 0;  // turns of blocks since one could continue
  for (std::size_t next = 0, which = 0; next < order.size() || !running.empty();) {
    while (next < order.size() && !free.empty()) {
      const int b = order[next++];
      free.back()->begin(b % across * cluster, b / across % y, b / (across * y), threads, cluster, shared_bytes, kernel,
                         random());
      running.push_back(free.back());
      free.pop_back();
    }
    which = interleave ? random() % running.size() : which % running.size();
    BlockThreads& block = *running[which];
    bool more = true;
    for (unsigned steps = interleave ? 1 + random() % kBurst : kBurst; more && steps > 0; --steps) {
      more = block.step();
    }
    if (more && block.stalled()) {
      if (++stalled > kPatience * running.size()) {
        throw std::logic_error("All " + std::to_string(running.size()) +
                               " emulated blocks wait for a count that none of them increases.");
      }
      ++which;
      continue;
    }
    stalled = 0;
    if (more) continue;
    free.push_back(&block);
    running.erase(running.begin() + static_cast<std::ptrdiff_t>(which));
  }
}

}  // namespace metatasnet::emulated
