// Encoder and decoder over all items and tiles.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/stage.h"
#include "cpu/team.h"

namespace metatasnet {
namespace {

constexpr int kDecodeTiles = 6;  // tiles that one thread decodes in a row; only their outer frames are decoded twice

// Where the spectrogram is interpolated for the frames of a tile, corners aligned.
struct Interpolation {
  std::int64_t frame[kTile], next[kTile];
  float weight[kTile];

  Interpolation(std::int64_t first, int rows, std::int64_t frames, std::int64_t mel_frames) {
    const double scale = frames > 1 ? static_cast<double>(mel_frames - 1) / static_cast<double>(frames - 1) : 0.0;
    for (int r = 0; r < rows; ++r) {
      const double position = scale * static_cast<double>(first + r);
      frame[r] = std::min(static_cast<std::int64_t>(position), mel_frames - 1);
      next[r] = std::min(frame[r] + 1, mel_frames - 1);
      weight[r] = static_cast<float>(position - static_cast<double>(frame[r]));
    }
  }
};

// values[first, first + count), zero outside [0, length).
void copy_padded(const float* values, std::int64_t length, std::int64_t first, std::int64_t count, float* to) {
  const std::int64_t begin = std::clamp<std::int64_t>(-first, 0, count);
  const std::int64_t end = std::clamp<std::int64_t>(length - first, begin, count);
  std::fill(to, to + begin, 0.0f);
  std::copy(values + first + begin, values + first + end, to + begin);
  std::fill(to + end, to + count, 0.0f);
}

}  // namespace

void Stage::encode(const float* signal, std::int64_t n, std::int64_t samples, std::int64_t signal_stride,
                   const float* mel, std::int64_t mel_frames, void* latent, int threads) const {
  const std::int64_t frames = samples / sizes_.W;
  const int tiles = tiles_of(frames), longest = sizes_.kernel_sizes.back(), padding = (longest - sizes_.W) / 2;
  const int operand = passes_->operand_size;
  prefer_huge_pages(latent, static_cast<std::size_t>(n) * frames * latent_ld() * passes_->storage_size);
  const std::int64_t window = static_cast<std::int64_t>(kTile) * sizes_.W + longest + kChannels;
  const int ld_bank = operand_ld(static_cast<int>(sizes_.kernel_sizes.size()) * (sizes_.N / 4), operand);
  const int ld_wide = operand_ld(sizes_.N, operand);
  struct Scratch {
    Buffer samples, signal, bank, wide;
  };
  std::vector<Scratch> scratch;
  Tickets tickets(n * tiles);
  run_team(
      static_cast<int>(std::min<std::int64_t>(threads, n * tiles)),
      [&](int team) {
        for (int i = 0; i < team; ++i) {
          scratch.push_back({buffer_of<float>(window), Buffer(window * operand),
                             Buffer(static_cast<std::size_t>(kTile) * ld_bank * operand),
                             Buffer(static_cast<std::size_t>(kTile) * ld_wide * operand)});
        }
      },
      [&](int member) {
        const Scratch& own = scratch[member];
        for (std::int64_t ticket; (ticket = tickets.draw()) >= 0;) {
          const std::int64_t item = ticket / tiles;
          const int tile = static_cast<int>(ticket % tiles), rows = rows_of(frames, tile);
          const std::int64_t first = static_cast<std::int64_t>(tile) * kTile;
          copy_padded(signal + item * signal_stride, samples, first * sizes_.W - padding, window,
                      own.samples.as<float>());
          passes_->to_operands(own.samples.as<float>(), window, own.signal.as<void>());
          const Interpolation at(first, rows, frames, mel_frames);
          EncodeArgs args{};
          args.rows = rows;
          args.signal = own.signal.as<void>();
          args.stride = sizes_.W;
          args.bank = &bank_.matrix;
          args.bottleneck_1 = &bottleneck_1_.matrix;
          args.bottleneck_2 = &bottleneck_2_.matrix;
          args.mel = mel + item * mel_frames * latent_ld();
          args.ld_mel = static_cast<int>(latent_ld());
          args.mel_frame = at.frame;
          args.mel_next = at.next;
          args.mel_weight = at.weight;
          args.latent = static_cast<char*>(latent) + (item * frames + first) * latent_ld() * passes_->storage_size;
          args.ld_latent = static_cast<int>(latent_ld());
          args.bank_operand = own.bank.as<void>();
          args.ld_bank = ld_bank;
          args.wide_operand = own.wide.as<void>();
          args.ld_wide = ld_wide;
          passes_->encode(args);
        }
      });
}

void Stage::decode(std::int64_t n, std::int64_t frames, const Source& latent, std::int64_t latent_item, float* signal,
                   int threads) const {
  const int W = sizes_.W, longest = sizes_.kernel_sizes.back(), padding = (longest - W) / 2;
  const std::int64_t halo = (padding + W - 1) / W;  // frames on either side that reach into a frame's samples
  const std::int64_t computed = std::max<std::int64_t>(kDecodeTiles, (8 * halo + kTile - 1) / kTile) * kTile;
  const std::int64_t useful = computed - 2 * halo, tasks = (frames + useful - 1) / useful;
  const int operand = passes_->operand_size;
  int wide = 0;
  for (const int w : sizes_.widths) wide += w;
  const int ld_latent = operand_ld(sizes_.N, operand), ld_wide = operand_ld(wide, operand);
  const std::int64_t window = computed * W + longest + kChannels;
  struct Scratch {
    Buffer samples, latent, wide;
  };
  std::vector<Scratch> scratch;
  Tickets tickets(n * tasks);
  run_team(
      static_cast<int>(std::min<std::int64_t>(threads, n * tasks)),
      [&](int team) {
        for (int i = 0; i < team; ++i) {
          scratch.push_back({buffer_of<float>(window), Buffer(static_cast<std::size_t>(kTile) * ld_latent * operand),
                             Buffer(static_cast<std::size_t>(kTile) * ld_wide * operand)});
        }
      },
      [&](int member) {
        const Scratch& own = scratch[member];
        for (std::int64_t ticket; (ticket = tickets.draw()) >= 0;) {
          const std::int64_t item = ticket / tasks;
          const std::int64_t begin = ticket % tasks * useful, end = std::min(frames, begin + useful);
          const std::int64_t from = std::max<std::int64_t>(0, begin - halo), to = std::min(frames, end + halo);
          float* samples = own.samples.as<float>();
          std::fill(samples, samples + window, 0.0f);
          for (std::int64_t first = from; first < to; first += kTile) {
            DecodeArgs args{};
            args.rows = static_cast<int>(std::min<std::int64_t>(kTile, to - first));
            args.latent = at(latent, item * latent_item + first * latent.stride);
            args.bottleneck = &expansion_.matrix;
            args.filters = &filters_.matrix;
            args.signal = samples + (first - from) * W;
            args.stride = W;
            args.latent_operand = own.latent.as<void>();
            args.ld_latent = ld_latent;
            args.wide_operand = own.wide.as<void>();
            args.ld_wide = ld_wide;
            passes_->decode(args);
          }
          const float* kept = samples + (begin - from) * W + padding;
          std::copy(kept, kept + (end - begin) * W, signal + (item * frames + begin) * W);
        }
      });
}

}  // namespace metatasnet
