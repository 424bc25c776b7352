// Encoder and decoder backward over all items and tiles.
//
// The weight gradients are as large as the activations of hundreds of frames, so threads do not sum into copies of
// their own. Instead, all threads first compute the gradients of a segment, which is some groups of tiles; then each
// adds up its own part of the weights over the segment's frames. A sum always takes whole groups in order, so the
// length of the segments does not change it.
#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "cpu/backward_weights.h"
#include "cpu/codec_frames.h"
#include "cpu/kept.h"
#include "cpu/team.h"

namespace metatasnet {
namespace {

constexpr int kGroupTiles = 8;
// Panels of columns of a weight gradient that one thread adds up, of half of its rows: they share what is made of the
// rows, and halves leave enough parts for the threads.
constexpr int kColumnPanels = 16;

class Segments {
 public:
  Segments(const Kernels& kernels, const Passes& passes, MemoryPool& pool, std::int64_t n, std::int64_t frames,
           int threads)
      : kernels_(kernels),
        passes_(passes),
        pool_(pool),
        frames_(frames),
        tiles_(tiles_of(frames)),
        all_tiles_(n * tiles_),
        groups_((threads + 1) / 2),
        segments_((all_tiles_ + groups_ * kGroupTiles - 1) / (groups_ * kGroupTiles)),
        panel_bytes_(static_cast<std::ptrdiff_t>(kGroupTiles) * kTile / passes.values * kernels.panel * 4) {}

  struct Tile {
    std::int64_t item, first;
    int rows, group;  // size of the segment
    std::ptrdiff_t unit;
  };

  // Activations of a segment, as units.
  int add_units(int channels) {
    const std::ptrdiff_t bytes = panels_of(channels) * panel_bytes_;
    units_.push_back({pool_.take(static_cast<std::size_t>(groups_) * bytes), bytes, panels_of(channels)});
    return static_cast<int>(units_.size()) - 1;
  }

  UnitsRoom room(int units, const Tile& tile) const {
    return {units_[units].data.as<char>() + tile.group * units_[units].bytes + tile.unit * kernels_.panel * 4,
            panel_bytes_};
  }

  // gradient = sum over all frames of rows (x) columns.
  void add_product(int rows, int columns, float* gradient, std::ptrdiff_t ld) {
    const int panels = units_[columns].panels, all_rows = units_[rows].panels, half = (all_rows + 1) / 2;
    for (int first = 0; first < panels; first += kColumnPanels) {
      const int last = std::min(panels, first + kColumnPanels);
      products_.push_back({rows, 0, half, columns, first, last, gradient, ld});
      if (half < all_rows) products_.push_back({rows, half, all_rows, columns, first, last, gradient, ld});
    }
  }

  // The same, where each panel of rows needs only the columns [begin, end) that range(its channels) gives.
  template <class RangeOf>
  void add_banded(int rows, int columns, float* gradient, std::ptrdiff_t ld, RangeOf range) {
    for (int p = 0; p < units_[rows].panels; ++p) {
      const auto [begin, end] = range(p * kernels_.panel, (p + 1) * kernels_.panel);
      products_.push_back({rows, p, p + 1, columns, begin / kernels_.panel, panels_of(end), gradient, ld});
    }
  }

  int panels_of(int channels) const { return (channels + kernels_.panel - 1) / kernels_.panel; }

  // make(member, tile) fills the units of a tile; then more(ticket, tiles of a segment) is called for each of `tickets`
  // tickets.
  template <class Make, class More>
  void run(int threads, const std::function<void(int)>& prepare, Make make, std::int64_t tickets, More more) {
    std::vector<std::unique_ptr<Tickets>> tile_tickets, sum_tickets;
    std::vector<std::vector<Tile>> tiles;
    for (std::int64_t s = 0; s < segments_; ++s) {
      tiles.push_back(tiles_in(s));
      tile_tickets.push_back(std::make_unique<Tickets>(static_cast<std::int64_t>(tiles.back().size())));
      sum_tickets.push_back(std::make_unique<Tickets>(static_cast<std::int64_t>(products_.size()) + tickets));
    }
    std::unique_ptr<Barrier> barrier;
    run_team(
        threads,
        [&](int team) {
          barrier = std::make_unique<Barrier>(team);
          prepare(team);
        },
        [&](int member) {
          for (std::int64_t s = 0; s < segments_; ++s) {
            for (std::int64_t t; (t = tile_tickets[s]->draw()) >= 0;) make(member, tiles[s][t]);
            barrier->wait();
            for (std::int64_t t; (t = sum_tickets[s]->draw()) >= 0;) {
              if (t < static_cast<std::int64_t>(products_.size())) {
                sum(products_[t], tiles[s], s == 0);
              } else {
                more(t - static_cast<std::int64_t>(products_.size()), tiles[s]);
              }
            }
            barrier->wait();
          }
        });
  }

 private:
  struct UnitSet {
    Block data;
    std::ptrdiff_t bytes;  // size of a group
    int panels;
  };
  struct Product {
    int rows, first_row, last_row;  // panels
    int columns, first, last;
    float* gradient;
    std::ptrdiff_t ld;
  };

  std::vector<Tile> tiles_in(std::int64_t segment) const {
    std::vector<Tile> found;
    std::ptrdiff_t unit = 0;
    const std::int64_t begin = segment * groups_ * kGroupTiles;
    for (std::int64_t t = begin; t < std::min(all_tiles_, begin + groups_ * kGroupTiles); ++t) {
      if ((t - begin) % kGroupTiles == 0) unit = 0;
      const int tile = static_cast<int>(t % tiles_), rows = rows_of(frames_, tile);
      found.push_back({t / tiles_, static_cast<std::int64_t>(tile) * kTile, rows,
                       static_cast<int>((t - begin) / kGroupTiles), unit});
      unit += (rows + passes_.values - 1) / passes_.values;
    }
    return found;
  }

  void sum(const Product& p, const std::vector<Tile>& tiles, bool empty) const {
    const std::ptrdiff_t unit = kernels_.panel * 4;
    for (std::size_t t = 0; t < tiles.size(); t += kGroupTiles) {
      const Tile& last = tiles[std::min(tiles.size(), t + kGroupTiles) - 1];
      const auto at = [&](int units, int panel) -> Units {
        return {units_[units].data.as<char>() + last.group * units_[units].bytes + panel * panel_bytes_, panel_bytes_,
                unit};
      };
      WeightGradientArgs args{};
      args.rows = at(p.rows, p.first_row);
      args.row_panels = p.last_row - p.first_row;
      args.columns = at(p.columns, 0);
      args.first = p.first;
      args.last = p.last;
      args.units = static_cast<int>(last.unit) + (last.rows + passes_.values - 1) / passes_.values;
      args.sum = {p.gradient + static_cast<std::ptrdiff_t>(p.first_row) * kernels_.panel * p.ld, p.ld,
                  empty && t == 0};
      passes_.weight_gradient(args);
    }
  }

  const Kernels& kernels_;
  const Passes& passes_;
  MemoryPool& pool_;
  const std::int64_t frames_;
  const int tiles_;
  const std::int64_t all_tiles_, groups_, segments_;
  const std::ptrdiff_t panel_bytes_;
  std::vector<UnitSet> units_;
  std::vector<Product> products_;
};

// Scratch of one thread.
struct Room {
  Room(const Passes& passes, MemoryPool& pool, std::int64_t count, int widest)
      : samples(pool.take_of<float>(count)), signal(pool.take(count * passes.operand_size)) {
    for (Block& rows : rooms) rows = pool.take(static_cast<std::size_t>(kTile) * widest * passes.operand_size);
  }

  Scratch scratch() const {
    return {{rooms[0].as<void>(), rooms[1].as<void>()}, {rooms[2].as<void>(), nullptr}};
  }

  Block samples, signal, rooms[3];
};

}  // namespace

void Stage::encode_gradient(const EncodeCall& call, int threads) const {
  const BackwardWeights& weights = backward_weights(threads);
  const StageSizes& s = sizes_;
  const Passes& passes = *passes_;
  const std::int64_t frames = call.samples / s.W, window = window_of(s, kTile);
  const KeptCodec layout(*this, passes);
  const auto* kept_bank = static_cast<const char*>(call.kept);
  const char* kept_wide = kept_bank + call.n * frames * layout.ld_bank * passes.storage_size;
  const int ld = static_cast<int>(latent_ld());
  // The filter bank's gradient is kept whole only if the signal's gradient is needed.
  Block bank_rows;
  if (call.signal_gradient) {
    bank_rows = pool_->take(static_cast<std::size_t>(call.n * frames + kTile) * layout.ld_bank * passes.operand_size);
  }

  Segments run(*kernels_, passes, *pool_, call.n, frames, threads);
  const int latent_gradient = run.add_units(s.N), wide_gradient = run.add_units(s.N);
  const int bank_gradient = run.add_units(s.bank());
  const int wide = run.add_units(s.N), bank = run.add_units(s.bank()), windows = run.add_units(s.longest());
  run.add_product(latent_gradient, wide, call.gradients.bottleneck_2, padded(s.N));
  run.add_product(wide_gradient, bank, call.gradients.bottleneck_1, padded(s.bank()));
  run.add_banded(bank_gradient, windows, call.gradients.bank, padded(s.longest()), [&](int, int last) {
    return taps_of(s, (std::min(last, s.bank()) - 1) / (s.N / 4));
  });
  std::vector<Room> rooms;
  const int mel_panels = run.panels_of(s.N);
  run.run(
      threads,
      [&](int team) {
        for (int i = 0; i < team; ++i) rooms.emplace_back(passes, *pool_, window, std::max(layout.ld_bank, layout.ld_latent));
      },
      [&](int member, const Segments::Tile& tile) {
        const Room& own = rooms[member];
        copy_padded(call.signal + tile.item * call.samples, call.samples, tile.first * s.W - s.padding(), window,
                    own.samples.as<float>());
        passes.to_operands(own.samples.as<float>(), window, own.signal.as<void>());
        const std::int64_t row = tile.item * frames + tile.first;
        EncodeGradientArgs args{};
        args.rows = tile.rows;
        args.gradient = at(call.gradient, tile.item * call.gradient_item + tile.first * call.gradient.stride);
        args.channels = s.N;
        args.bank_channels = s.bank();
        args.longest = s.longest();
        args.kept_wide = kept_wide + row * layout.ld_latent * passes.storage_size;
        args.ld_wide = layout.ld_latent;
        args.kept_bank = kept_bank + row * layout.ld_bank * passes.storage_size;
        args.ld_bank = layout.ld_bank;
        args.bottleneck_1 = &weights.bottleneck_1.matrix;
        args.bottleneck_2 = &weights.bottleneck_2.matrix;
        args.signal = own.signal.as<void>();
        args.stride = s.W;
        if (call.signal_gradient) args.bank_rows = bank_rows.as<char>() + row * layout.ld_bank * passes.operand_size;
        args.latent_gradient = run.room(latent_gradient, tile);
        args.wide_gradient = run.room(wide_gradient, tile);
        args.bank_gradient = run.room(bank_gradient, tile);
        args.wide = run.room(wide, tile);
        args.bank = run.room(bank, tile);
        args.window = run.room(windows, tile);
        args.scratch = own.scratch();
        passes.encode_gradient(args);
      },
      call.mel_gradient ? (mel_panels + kColumnPanels - 1) / kColumnPanels : 0,
      [&](std::int64_t ticket, const std::vector<Segments::Tile>& tiles) {
        for (const Segments::Tile& tile : tiles) {
          const Interpolation at(tile.first, tile.rows, frames, call.mel_frames);
          MelGradientArgs args{};
          args.rows = tile.rows;
          args.gradient = run.room(wide_gradient, tile);
          args.first = static_cast<int>(ticket) * kColumnPanels;
          args.last = std::min(mel_panels, args.first + kColumnPanels);
          args.mel_frame = at.frame;
          args.mel_next = at.next;
          args.mel_weight = at.weight;
          args.mel = call.mel_gradient + tile.item * call.mel_frames * ld;
          args.ld_mel = ld;
          passes.mel_gradient(args);
        }
      });
  if (!call.signal_gradient) return;
  overlapping(
      *this, call.n, call.samples, call.signal_gradient, threads, [](int) {},
      [&](const OverlapTile& tile) {
        const std::int64_t row = tile.item * frames + tile.first;
        passes.overlap_add({tile.rows, bank_rows.as<char>() + row * layout.ld_bank * passes.operand_size,
                            layout.ld_bank, &weights.bank.matrix, tile.samples, s.W});
      });
}

void Stage::decode_gradient(const DecodeCall& call, int threads) const {
  const BackwardWeights& weights = backward_weights(threads);
  const StageSizes& s = sizes_;
  const Passes& passes = *passes_;
  const std::int64_t window = window_of(s, kTile), samples = call.frames * s.W;
  const KeptCodec layout(*this, passes);

  Segments run(*kernels_, passes, *pool_, call.n, call.frames, threads);
  const int wide_gradient = run.add_units(s.wide()), latent = run.add_units(s.N), wide = run.add_units(s.wide());
  const int windows = run.add_units(s.longest());
  run.add_product(latent, wide_gradient, call.gradients.bottleneck, padded(s.wide()));
  run.add_banded(wide, windows, call.gradients.filters, padded(s.longest()),
                 [&](int first, int) { return decoder_taps(s, first); });
  std::vector<Room> rooms;
  run.run(
      threads,
      [&](int team) {
        for (int i = 0; i < team; ++i) rooms.emplace_back(passes, *pool_, window, std::max(layout.ld_wide, layout.ld_latent));
      },
      [&](int member, const Segments::Tile& tile) {
        const Room& own = rooms[member];
        copy_padded(call.gradient + tile.item * samples, samples, tile.first * s.W - s.padding(), window,
                    own.samples.as<float>());
        passes.to_operands(own.samples.as<float>(), window, own.signal.as<void>());
        const std::int64_t row = tile.item * call.frames + tile.first;
        DecodeGradientArgs args{};
        args.rows = tile.rows;
        args.latent = at(call.latent, tile.item * call.latent_item + tile.first * call.latent.stride);
        args.wide_channels = s.wide();
        args.longest = s.longest();
        args.kept_wide = static_cast<const char*>(call.kept) + row * layout.ld_wide * passes.storage_size;
        args.ld_wide = layout.ld_wide;
        args.ld_latent = layout.ld_latent;
        args.bottleneck = &weights.expansion.matrix;
        args.filters = &weights.filters.matrix;
        args.signal = own.signal.as<void>();
        args.stride = s.W;
        args.latent_gradient = static_cast<char*>(call.latent_gradient) + row * latent_ld() * passes.storage_size;
        args.ld_gradient = static_cast<int>(latent_ld());
        args.wide_gradient = run.room(wide_gradient, tile);
        args.latent_units = run.room(latent, tile);
        args.wide = run.room(wide, tile);
        args.window = run.room(windows, tile);
        args.scratch = own.scratch();
        passes.decode_gradient(args);
      },
      0, [](std::int64_t, const std::vector<Segments::Tile>&) {});
}

}  // namespace metatasnet
