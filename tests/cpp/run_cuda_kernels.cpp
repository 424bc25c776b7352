// Runs the CUDA kernels on the emulator without Python, for the sanitizers: small stages of awkward sizes, inputs and
// workspaces that end where their allocation ends. Then the emulator itself: fragments lie where PTX says, and what a
// GPU might forgive is found. Prints a line and exits 1 where something is wrong.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>

#include "cuda/interface.h"
#include "cuda/launch.h"
#include "cuda/mma_layout.h"

namespace {

using namespace metatasnet;
using emulated::Block;
using emulated::padded;

bool good = true;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("not so: %s\n", what);
  good = false;
}

// Fragments as the PTX ISA words them, for lane `l` and element `i` of a register file of halves or words.
void fragments_lie_where_ptx_says() {
  using namespace emulated;
  for (int l = 0; l < kWarp; ++l) {
    const int group = l >> 2, member = l % 4;
    for (int i = 0; i < 8; ++i) {  // m16n8k16, A
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int column = member * 2 + (i & 1) + (i < 4 ? 0 : 8);
      expect(a_row(l, i / 2) == row && 2 * a_word(l, i / 2) + i % 2 == column, "A of m16n8k16");
    }
    for (int i = 0; i < 4; ++i) {
      const int k = member * 2 + (i & 1) + (i < 2 ? 0 : 8);  // m16n8k16, B
      expect(b_column(l, i / 2) == group && 2 * b_word(l, i / 2) + i % 2 == k, "B of m16n8k16");
      expect(d_row(l, i) == (i < 2 ? group : group + 8) && d_column(l, i) == member * 2 + (i & 1), "C and D");
      const int row = (i == 0 || i == 2) ? group : group + 8, column = i < 2 ? member : member + 4;  // m16n8k8, A
      expect(a_row(l, i) == row && a_word(l, i) == column, "A of m16n8k8");
    }
    for (int i = 0; i < 2; ++i) expect(b_word(l, i) == (i ? member + 4 : member), "B of m16n8k8");
  }
}

// Each thread writes its number and reads its neighbour's.
std::vector<float> neighbours(bool barrier, unsigned order) {
  constexpr int kCount = 64;
  std::vector<float> found(kCount);
  emulated::set_order(order);
  emulated::emulate(1, 1, 1, kCount, kCount * sizeof(float), [&](Block& block) {
    auto* shared = reinterpret_cast<float*>(block.shared());
    shared[block.thread()] = static_cast<float>(block.thread());
    if (barrier) block.sync();
    found[block.thread()] = shared[(block.thread() + 1) % kCount];
  });
  emulated::set_order(0);
  return found;
}

void what_a_gpu_might_forgive_is_found() {
  expect(neighbours(true, 0) == neighbours(true, 1) && neighbours(true, 2)[5] == 6.0f, "a barrier makes orders equal");
  expect(std::isnan(neighbours(false, 0)[5]) && neighbours(false, 1)[5] == 6.0f, "a missing barrier shows");

  const float source[4] = {1, 2, 3, 4};
  float before = 0, after = 0;
  emulated::emulate(1, 1, 1, 1, 16, [&](Block& block) {
    block.copy_async(0, source, true);
    block.commit();
    std::memcpy(&before, block.shared(), sizeof before);
    block.wait<0>();
    std::memcpy(&after, block.shared(), sizeof after);
  });
  expect(std::isnan(before) && after == 1.0f, "copies arrive no earlier than they are waited for");

  bool stuck = false;
  try {
    emulated::emulate(1, 1, 1, 64, 0, [](Block& block) {
      if (block.thread() != 7) block.sync();
    });
  } catch (const std::logic_error&) {
    stuck = true;
  }
  expect(stuck, "a barrier that one thread never reaches is an error");
}

// Returns the sum that each of three blocks publishes and reads after all have met `times` times; NaN in place of an error.
// `fences`: before and after they meet.
float meeting(bool first_fence, bool second_fence, int times, unsigned order) {
  float values[3] = {1, 10, 100}, found[3];
  int arrived = 0;
  emulated::set_order(order);
  try {
    emulated::emulate(
        3, 1, 1, 32, 16,
        [&](Block& block) {
          if (block.thread() == 0) {
            block.publish(&values[block.x()], values[block.x()] + 1);
            if (first_fence) block.fence();
            block.increment(&arrived);
            block.await(&arrived, 3 * times);
            if (second_fence) block.fence();
            found[block.x()] = 0;
            for (const float& value : values) found[block.x()] += block.load_written(&value);
          }
          block.sync();
        },
        1, true);
  } catch (const std::logic_error&) {
    found[0] = NAN;
  }
  emulated::set_order(0);
  return found[0] == found[1] && found[1] == found[2] ? found[0] : NAN;
}

void blocks_that_run_together_can_wait_for_each_other() {
  for (const unsigned order : {0u, 1u, 2u, 3u, 5u}) {
    expect(meeting(true, true, 1, order) == 114, "blocks read what others wrote before they met");
    expect(meeting(false, true, 1, order) != 114, "a missing fence before the count shows");
    expect(meeting(true, false, 1, order) != 114, "a missing fence after the count shows");
    expect(std::isnan(meeting(true, true, 2, order)), "a count that is never reached is an error");
  }
}

// Steps that a kernel with wgmma and TMA can leave out; the emulator must report each.
enum class Forgotten { nothing, publishing, arrival, begin, completion, emptying };

// Returns true if a product of 64 x 128 and 160 x 128, in two chunks through one stage, has the right sums and no error.
bool multiplies(Forgotten forgotten, unsigned order) {
  constexpr int kRows = 64, kColumns = 160, kSum = 128, kWeights = kRows * 128, kFull = 224 * 128, kEmpty = kFull + 8;
  const auto a = [](int row, int k) { return (row + 3 * k) % 7 - 3; };
  const auto b = [](int column, int k) { return (5 * column + k) % 9 - 4; };
  std::vector<emulated::Bfloat16> rows, columns;
  for (int i = 0; i < kRows * kSum; ++i) rows.push_back(emulated::stored<emulated::Bfloat16>(a(i / kSum, i % kSum)));
  for (int i = 0; i < kColumns * kSum; ++i) columns.push_back(emulated::stored<emulated::Bfloat16>(b(i / kSum, i % kSum)));
  const auto map = [&](const std::vector<emulated::Bfloat16>& data, int count) {
    return emulated::tensor_map({data.data(), kSum, count, 1, 2 * kSum, 2 * kSum * count, count});
  };
  const emulated::TensorMap of_a = map(rows, kRows), of_b = map(columns, kColumns);
  std::vector<float> found(kRows * kColumns);
  emulated::set_order(order);
  try {
    emulated::emulate(1, 1, 1, 128, kEmpty + 8, [&](Block& block) {
      const auto load = [&](int chunk) {
        block.arrive_expecting(kFull, kFull);
        block.copy_box(0, of_a, kFull, 64 * chunk, 0, 0);
        block.copy_box(kWeights, of_b, kFull, 64 * chunk, 0, 0);
      };
      if (block.thread() == 0) {
        block.init_barrier(kFull, 1);
        block.init_barrier(kEmpty, 4);
        if (forgotten != Forgotten::publishing) block.publish_barriers();
      }
      block.sync_cluster();
      if (block.thread() == 0) load(0);
      float d[20][4] = {};
      for (int chunk = 0; chunk < 2; ++chunk) {
        if (forgotten != Forgotten::arrival) block.wait_phase(kFull, chunk);
        if (forgotten != Forgotten::begin) block.begin_products();
        for (int step = 0; step < 4; ++step) block.multiply(d, 2 * step, kWeights / 16 + 2 * step);
        block.commit_products();
        if (forgotten != Forgotten::completion) block.wait_products<0>();
        if (block.lane() == 0) block.arrive_at(kEmpty, 0);
        if (block.thread() > 0 || chunk > 0) continue;
        if (forgotten != Forgotten::emptying) block.wait_phase(kEmpty, 0);
        load(1);
      }
      for (int i = 0; i < 80; ++i) {
        const int row = 16 * block.warp() + emulated::d_row(block.lane(), i % 4);
        found[row * kColumns + i / 4 * 8 + emulated::d_column(block.lane(), i % 4)] = d[i / 4][i % 4];
      }
    });
  } catch (const std::logic_error&) {
    found.clear();
  }
  emulated::set_order(0);
  if (found.empty()) return false;
  for (int i = 0; i < kRows * kColumns; ++i) {
    int sum = 0;
    for (int k = 0; k < kSum; ++k) sum += a(i / kColumns, k) * b(i % kColumns, k);
    if (found[i] != static_cast<float>(sum)) return false;
  }
  return true;
}

void what_wgmma_might_forgive_is_found() {
  const auto orders = [](Forgotten forgotten) {
    int good_ones = 0;
    for (const unsigned order : {0u, 1u, 2u, 3u, 5u, 7u}) good_ones += multiplies(forgotten, order);
    return good_ones;
  };
  expect(orders(Forgotten::nothing) == 6, "wgmma multiplies what TMA copied, in every order");
  expect(orders(Forgotten::publishing) == 0, "barriers that TMA does not know are found");
  expect(orders(Forgotten::arrival) == 0, "boxes arrive no earlier than they are waited for");
  expect(orders(Forgotten::begin) == 0, "sums that no fence leads are found");
  expect(orders(Forgotten::completion) == 0, "sums are not there before they are waited for");
  expect(orders(Forgotten::emptying) < 6, "a stage that is filled while others read it is found");
}

// Weights in allocations of exactly their size.
class Weights {
 public:
  Weights(const device::Sizes& s, bool bfloat16) : bfloat16_(bfloat16) {
    const int b_ld = padded(s.B), h_ld = padded(s.H), n_ld = padded(s.N);
    stored("encoder.bank", {s.bank, padded(s.window)});
    stored("encoder.bottleneck_1", {s.N, padded(s.bank)});
    stored("encoder.bottleneck_2", {s.N, n_ld});
    floats("encoder.window", {s.n_fft});
    doubles("encoder.twiddles", {s.n_fft / 2, 2});
    floats("encoder.mean", {s.bins()});
    floats("encoder.to_mel", {s.mels, padded(s.bins())});
    floats("encoder.to_latent", {s.N, padded(s.mels)});
    floats("encoder.mel_bias", {s.N});
    stored("decoder.expansion", {s.wide, n_ld});
    stored("decoder.filters", {s.window, padded(s.wide)});
    floats("mask.in_conv", {s.instruments, s.B, n_ld + padded(s.partial)});
    floats("mask.mask_output", {s.instruments, s.N, b_ld});
    floats("mask.norm_1", {s.instruments, 2, s.N + s.partial});
    floats("mask.norm_2", {s.instruments, 2, s.B});
    floats("mask.norm_3", {s.instruments, 2, s.B});
    floats("mask.norm_4", {s.instruments, 2, s.N});
    stored("mask.blocks.conv1d", {s.blocks(), s.instruments, s.H, b_ld});
    stored("mask.blocks.residual", {s.blocks() - 1, s.instruments, s.B, h_ld});
    stored("mask.blocks.skip", {s.instruments, s.B, s.blocks() * h_ld});
    floats("mask.blocks.residual_bias", {s.blocks() - 1, s.instruments, s.B});
    floats("mask.blocks.skip_bias", {s.instruments, s.B});
    floats("mask.blocks.taps", {s.blocks(), s.instruments, 3, h_ld});
    floats("mask.blocks.norm_1", {s.blocks(), s.instruments, 2, s.H});
    floats("mask.blocks.norm_2", {s.blocks(), s.instruments, 2, s.H});
    for (int i = 0; i < s.blocks(); ++i) {
      const std::string name = "mask.blocks." + std::to_string(i) + ".";
      const int outputs = i + 1 < s.blocks() ? 2 * s.B : s.B;
      floats(name + "mix", {s.instruments, outputs, h_ld});
      floats(name + "mix_bias", {s.instruments, outputs});
    }
  }

  std::map<std::string, device::Array> arrays;

 private:
  template <class T>
  void add(const std::string& name, const std::vector<std::int64_t>& shape, device::Type type) {
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    std::vector<char>& bytes = values_[name];
    bytes.resize(count * sizeof(T));
    for (std::int64_t i = 0; i < count; ++i) {
      const float value = 0.2f * std::normal_distribution<float>()(random_);
      const T own = convert(value, T());
      std::memcpy(&bytes[i * sizeof(T)], &own, sizeof own);
    }
    arrays[name] = {bytes.data(), shape, type};
  }
  static float convert(float value, float) { return value; }
  static double convert(float value, double) { return value; }
  static emulated::Bfloat16 convert(float value, emulated::Bfloat16) {
    return emulated::stored<emulated::Bfloat16>(value);
  }

  void floats(const std::string& name, const std::vector<std::int64_t>& shape) {
    add<float>(name, shape, device::Type::float32);
  }
  void doubles(const std::string& name, const std::vector<std::int64_t>& shape) {
    add<double>(name, shape, device::Type::float64);
  }
  void stored(const std::string& name, const std::vector<std::int64_t>& shape) {
    if (bfloat16_) add<emulated::Bfloat16>(name, shape, device::Type::bfloat16);
    if (!bfloat16_) floats(name, shape);
  }

  bool bfloat16_;
  std::mt19937 random_{7};
  std::map<std::string, std::vector<char>> values_;
};

std::vector<float> run(const device::Stage& stage, std::int64_t n, std::int64_t frames) {
  const device::Sizes& s = stage.sizes();
  const std::int64_t size = stage.stores_bfloat16() ? 2 : 4, ld = stage.latent_ld(), samples = frames * s.W + s.W / 2;
  std::vector<float> signal(n * samples);
  std::mt19937 random(1);
  for (float& x : signal) x = std::normal_distribution<float>()(random);
  std::vector<char> latent(n * frames * ld * size), masked(n * s.instruments * frames * ld * size);
  const device::Place place{};
  {
    std::vector<char> workspace(stage.encode_bytes(n, samples), '\xff');
    stage.encode(place, n, samples, signal.data(), latent.data(), workspace.data());
  }
  const device::Frames own{latent.data(), frames * ld, 0, ld, s.N};
  // The previous stage's latents come without padding, so that reading beyond the last one is caught.
  std::vector<char> partial(n * s.instruments * frames * s.partial * size);
  const device::Frames previous{partial.data(), s.instruments * frames * s.partial, frames * s.partial, s.partial,
                                s.partial};
  {
    std::vector<char> workspace(stage.mask_bytes(n, frames, false), '\xff');
    stage.mask(place, n, frames, own, own, s.partial ? previous : device::Frames{}, masked.data(), workspace.data());
  }
  const std::int64_t units = n * s.instruments;
  std::vector<float> result(units * frames * s.W);
  std::vector<char> workspace(stage.decode_bytes(units, frames), '\xff');
  stage.decode(place, units, frames, {masked.data(), frames * ld, 0, ld, s.N}, result.data(), workspace.data());
  return result;
}

void stages_are_finite_in_every_order() {
  std::vector<device::Sizes> all(2);
  device::Sizes& first = all[0];
  first.instruments = 5, first.softmax = 3;
  first.N = 8, first.W = 7, first.B = 8, first.H = 16, first.window = 7, first.bank = 2, first.wide = 4;
  first.taps = {7}, first.inputs = {4};
  first.mels = 3, first.n_fft = 64, first.hop = 16, first.dilations = {1};
  device::Sizes& second = all[1];
  second.instruments = 4, second.softmax = 4;
  second.N = 40, second.W = 10, second.B = 16, second.H = 104, second.partial = 16, second.window = 34, second.bank = 30;
  second.wide = 35, second.mels = 5, second.n_fft = 128, second.hop = 32, second.dilations = {1, 32, 2};
  second.taps = {14, 34}, second.inputs = {20, 15}, second.turn = 3;
  for (device::Sizes& s : all) {
    s.biased = true;
    using device::Precision;
    using device::Products;
    const std::pair<Precision, Products> ways[] = {{Precision::float32, Products::mma},
                                                   {Precision::tf32, Products::mma},
                                                   {Precision::bfloat16, Products::mma},
                                                   {Precision::bfloat16, Products::wgmma}};
    for (const auto& [p, products] : ways) {
      const Weights weights(s, p == Precision::bfloat16);
      const device::Slopes slopes{0.25f, 0.2f, 0.3f, 0.1f, std::vector<float>(2 * s.blocks(), 0.25f)};
      const auto stage = emulated::make_stage(p, products, s, slopes, weights.arrays);
      for (const std::int64_t frames : {13, 131, 161}) {
        const std::vector<float> one = run(*stage, 2, frames);
        bool finite = true;
        for (const float x : one) finite = finite && std::isfinite(x);
        expect(finite, "results are numbers");
        for (const unsigned order : {2u, 5u, 7u}) {
          emulated::set_order(order);
          expect(run(*stage, 2, frames) == one, "the order of threads and blocks changes no bit");
        }
        emulated::set_order(0);
      }
    }
  }
}

}  // namespace

int main() {
  fragments_lie_where_ptx_says();
  what_a_gpu_might_forgive_is_found();
  what_wgmma_might_forgive_is_found();
  blocks_that_run_together_can_wait_for_each_other();
  stages_are_finite_in_every_order();
  std::printf("emulated kernels run: %s\n", good ? "as they should" : "badly");
  return good ? 0 : 1;
}
