#include "cpu/cosines.h"

#include <algorithm>
#include <vector>

#include "cpu/team.h"

namespace metatasnet {
namespace {

constexpr std::int64_t kFrames = 16;  // frames that one thread processes at once

// Call run(args, number of the piece) for pieces of the frames, on several threads.
template <class Run>
void each_piece(const CosineCall& call, int threads, Run run) {
  const std::int64_t pieces = (call.frames + kFrames - 1) / kFrames;
  const int count = static_cast<int>(call.items) * call.instruments, channels = call.latents.source.channels;
  std::vector<Source> rows;
  for (int row = 0; row < count; ++row) rows.push_back(at(call.latents, row / call.instruments, row % call.instruments));
  Tickets tickets(pieces);
  run_team(static_cast<int>(std::min<std::int64_t>(threads, pieces)), [](int) {}, [&](int) {
    std::vector<float> norms(count), factors(count), scratch(static_cast<std::size_t>(call.instruments) * padded(channels));
    CosineArgs args{};
    args.frames = call.frames;
    args.channels = channels;
    args.items = static_cast<int>(call.items);
    args.instruments = call.instruments;
    args.carried = call.carried;
    args.rows = rows.data();
    args.mask = call.mask;
    args.norms = norms.data();
    args.factors = factors.data();
    args.scratch = scratch.data();
    args.ld = padded(channels);
    for (std::int64_t piece; (piece = tickets.draw()) >= 0;) {
      args.first = piece * kFrames;
      args.last = std::min(call.frames, args.first + kFrames);
      run(args, piece);
    }
  });
}

}  // namespace

CosineSums cosine_sums(const Kernels& kernels, const CosineCall& call, int threads) {
  std::vector<double> sums(2 * static_cast<std::size_t>((call.frames + kFrames - 1) / kFrames));
  each_piece(call, threads, [&](CosineArgs& args, std::int64_t piece) {
    args.sums = sums.data() + 2 * piece;
    kernels.float32.cosines(args);
  });
  CosineSums total{};
  for (std::size_t i = 0; i < sums.size(); i += 2) {
    total.pairs += sums[i];
    total.neighbours += sums[i + 1];
  }
  return total;
}

void cosine_gradient(const Kernels& kernels, const CosineCall& call, const CosineSums& gradient, bool bfloat16,
                     void* latents_gradient, int threads) {
  const Passes& passes = bfloat16 ? kernels.bfloat16 : kernels.float32;
  each_piece(call, threads, [&](CosineArgs& args, std::int64_t) {
    args.on_pairs = static_cast<float>(gradient.pairs);
    args.on_neighbours = static_cast<float>(gradient.neighbours);
    args.gradient = latents_gradient;
    passes.cosines_gradient(args);
  });
}

}  // namespace metatasnet
