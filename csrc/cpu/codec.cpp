// Encoder and decoder over all items and tiles.
#include <algorithm>
#include <vector>

#include "cpu/codec_frames.h"
#include "cpu/kept.h"
#include "cpu/team.h"

namespace metatasnet {

void Stage::encode(const float* signal, std::int64_t n, std::int64_t samples, std::int64_t signal_stride,
                   const float* mel, std::int64_t mel_frames, void* latent, void* kept, int threads) const {
  const std::int64_t frames = samples / sizes_.W;
  const int tiles = tiles_of(frames);
  const int operand = passes_->operand_size;
  prefer_huge_pages(latent, static_cast<std::size_t>(n) * frames * latent_ld() * passes_->storage_size);
  const std::int64_t window = window_of(sizes_, kTile);
  const KeptCodec layout(*this, *passes_);
  const int ld_bank = layout.ld_bank, ld_wide = layout.ld_latent;
  char* const kept_wide = static_cast<char*>(kept) + (kept ? n * frames * ld_bank * passes_->storage_size : 0);
  struct Room {
    Block samples, signal, bank, wide;
  };
  std::vector<Room> room;
  Tickets tickets(n * tiles);
  run_team(
      static_cast<int>(std::min<std::int64_t>(threads, n * tiles)),
      [&](int team) {
        for (int i = 0; i < team; ++i) {
          room.push_back({pool_->take_of<float>(window), pool_->take(window * operand),
                          pool_->take(static_cast<std::size_t>(kTile) * ld_bank * operand),
                          pool_->take(static_cast<std::size_t>(kTile) * ld_wide * operand)});
        }
      },
      [&](int member) {
        const Room& own = room[member];
        for (std::int64_t ticket; (ticket = tickets.draw()) >= 0;) {
          const std::int64_t item = ticket / tiles;
          const int tile = static_cast<int>(ticket % tiles), rows = rows_of(frames, tile);
          const std::int64_t first = static_cast<std::int64_t>(tile) * kTile;
          copy_padded(signal + item * signal_stride, samples, first * sizes_.W - sizes_.padding(), window,
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
          args.mel = mel ? mel + item * mel_frames * latent_ld() : nullptr;
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
          if (kept) {
            const std::int64_t row = (item * frames + first) * passes_->storage_size;
            args.kept_bank = static_cast<char*>(kept) + row * ld_bank;
            args.kept_wide = kept_wide + row * ld_wide;
          }
          passes_->encode(args);
        }
      });
}

void Stage::decode(std::int64_t n, std::int64_t frames, const Source& latent, std::int64_t latent_item, float* signal,
                   void* kept, int threads) const {
  const int operand = passes_->operand_size;
  const KeptCodec layout(*this, *passes_);
  struct Room {
    Block latent, wide;
  };
  std::vector<Room> room;
  overlapping(
      *this, n, frames * sizes_.W, signal, threads,
      [&](int team) {
        for (int i = 0; i < team; ++i) {
          room.push_back({pool_->take(static_cast<std::size_t>(kTile) * layout.ld_latent * operand),
                          pool_->take(static_cast<std::size_t>(kTile) * layout.ld_wide * operand)});
        }
      },
      [&](const OverlapTile& tile) {
        DecodeArgs args{};
        args.rows = tile.rows;
        args.latent = at(latent, tile.item * latent_item + tile.first * latent.stride);
        args.bottleneck = &expansion_.matrix;
        args.filters = &filters_.matrix;
        args.signal = tile.samples;
        args.stride = sizes_.W;
        args.latent_operand = room[tile.member].latent.as<void>();
        args.ld_latent = layout.ld_latent;
        args.wide_operand = room[tile.member].wide.as<void>();
        args.ld_wide = layout.ld_wide;
        if (kept) {
          const std::int64_t row = tile.item * frames + tile.first;
          args.kept_wide = static_cast<char*>(kept) + row * layout.ld_wide * passes_->storage_size;
          args.kept_begin = static_cast<int>(std::max<std::int64_t>(0, tile.begin - tile.first));
          args.kept_end = static_cast<int>(std::max<std::int64_t>(0, std::min<std::int64_t>(kTile, tile.end - tile.first)));
        }
        passes_->decode(args);
      });
}

std::int64_t Stage::kept_encoder(std::int64_t n, std::int64_t frames) const {
  const KeptCodec layout(*this, *passes_);
  return n * frames * (layout.ld_bank + layout.ld_latent) * passes_->storage_size;
}

std::int64_t Stage::kept_decoder(std::int64_t n, std::int64_t frames) const {
  return n * frames * KeptCodec(*this, *passes_).ld_wide * passes_->storage_size;
}

}  // namespace metatasnet
