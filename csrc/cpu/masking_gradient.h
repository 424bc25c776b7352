// One call of Stage::mask_gradient: the data that its threads share, and the work of each thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/backward_weights.h"
#include "cpu/kept.h"
#include "cpu/team.h"

namespace metatasnet {

// Statistics of a norm and the factors of its backward pass, by channel, with zeros after the last one.
class NormArrays {
 public:
  explicit NormArrays(int channels)
      : mean_(room(channels)), rstd_(mean_), scale_(mean_), offset_(mean_), factor_(mean_) {}

  // For normalise() alone.
  void set(const GroupStatistics& statistics, int channels);

  // Computed from the gradients of the norm's weights over `frames` frames; `folded`: dy already contains the norm's
  // scale.
  template <class Sum>
  void set(const GroupStatistics& statistics, int channels, std::int64_t frames, const float* scale,
           const Sum* scale_gradient, const Sum* shift_gradient, bool folded);

  Normalise normalise(float slope) const { return {mean_.data(), rstd_.data(), slope}; }
  NormGradient gradient(float slope, int first = 0) const {
    return {scale_.data() + first, mean_.data() + first, offset_.data() + first, factor_.data() + first, slope};
  }

 private:
  static std::vector<float> room(int channels) { return std::vector<float>(padded(channels) + kChannels); }

  std::vector<float> mean_, rstd_, scale_, offset_, factor_;
};

class MaskingGradient {
 public:
  MaskingGradient(const Stage& stage, const BackwardWeights& weights, const MaskCall& call,
                  const MaskTensors<float>& gradients);

  // Allocate memory for this many threads, before any of them runs.
  void prepare(int threads);

  // The work of thread number `thread`.
  void run(int thread);

 private:
  // A unit's frames are split into this many chunks, each with its own sums. The split does not depend on the number of
  // threads, so the sums do not either. At most kChunks threads of a team work on sums.
  static constexpr int kChunks = 2;

  // Data that the threads of a team share.
  struct Team {
    explicit Team(const MaskingGradient& r)
        : barrier(r.team_size_),
          gradient(r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.tiles_) * kTile * 2 * r.ld_b_)),
          hidden(r.stage_.pool().take(static_cast<std::size_t>(r.tiles_) * kTile * r.ld_h_ * r.passes_.storage_size)),
          part(std::max({static_cast<std::ptrdiff_t>(r.ld_n_) * r.ld_b_, 2 * r.ld_b_ * static_cast<std::ptrdiff_t>(r.ld_h_),
                         r.ld_b_ * static_cast<std::ptrdiff_t>(padded(r.s_.inputs()))})),
          conv_part(static_cast<std::ptrdiff_t>(r.ld_h_) * r.ld_b_),
          columns(std::max(r.ld_n_, 2 * r.ld_b_)),
          parts(r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.chunks_ * part))),
          conv_parts(r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.chunks_ * conv_part))),
          column_parts(r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.chunks_) * columns)),
          tile_sums(r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.tiles_) * 6 * r.ld_h_)),
          stream_sums(r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.tiles_) * 2 * r.ld_b_)) {
      for (auto& room : norms) room.resize(2 * static_cast<std::size_t>(r.norm_room_));
    }

    float* skip_gradient(std::int64_t frame, int ld_b) const {
      return gradient.as<float>() + frame * 2 * ld_b + ld_b;
    }

    Barrier barrier;
    std::int64_t unit = 0;
    Block gradient;  // gradients of the residual stream and, after it, of the skip sum: rows of 2 ld_b
    Block hidden;    // the depthwise convolution's output
    std::ptrdiff_t part, conv_part;
    int columns;
    Block parts, conv_parts, column_parts;  // sums over the frames of each chunk
    Block tile_sums, stream_sums;
    std::vector<float> norms[2];  // gradients of a norm's scale and shift; two in turn: a slower member may still read one
  };

  // Data that one thread uses alone.
  struct Member {
    explicit Member(const MaskingGradient& r)
        : norm(std::max({r.s_.N, r.s_.B, r.s_.H, r.s_.inputs()})),
          input(norm),
          narrow(r.s_.B),
          sums(static_cast<std::size_t>(std::max({2 * r.ld_n_, 8 * r.ld_h_, 2 * r.ld_b_}))),
          columns(static_cast<std::size_t>(std::max(r.ld_n_, 2 * r.ld_b_))) {
      const std::size_t widest = std::max({r.ld_in_, operand_ld(r.s_.N, r.passes_.operand_size), 2 * r.ld_b_, r.ld_h_,
                                           r.s_.instruments * r.ld_b_});
      for (Block& room : rooms) room = r.stage_.pool().take(kTile * widest * r.passes_.operand_size);
    }

    Scratch scratch() const {
      return {{rooms[0].as<void>(), rooms[1].as<void>()}, {rooms[2].as<void>(), rooms[3].as<void>()}};
    }

    NormArrays norm, input, narrow;
    bool norm_turn = false;
    std::vector<double> sums;
    std::vector<float> columns;
    Block rooms[4];
  };

  int instrument(std::int64_t unit) const { return static_cast<int>(unit % s_.instruments); }
  const char* kept(std::int64_t unit, std::int64_t offset, std::int64_t frame = 0, int ld = 0) const {
    return kept_ + unit * layout_.bytes() + offset + frame * ld * passes_.storage_size;
  }
  const GroupStatistics& statistics(std::int64_t unit, int norm) const {
    return *layout_.statistics(kept(unit, 0), norm);
  }
  float* slope_sum(std::int64_t unit, int norm, int tile) {
    return slope_sums_.as<float>() + (unit * norms_ + norm) * tiles_ + tile;
  }

  struct Tile {
    int index, rows;
    std::int64_t first;
  };
  // A tile of a chunk whose sums are added up; `empty`: it is the first tile of the chunk.
  struct Chunk {
    int index;
    bool empty;
    Tile tile;
  };

  Tile tile(int index) const {
    return {index, rows_of(call_.frames, index), static_cast<std::int64_t>(index) * kTile};
  }

  // The tiles that a member processes.
  template <class Body>
  void each_tile(int place, Body body) const {
    const int last = tiles_ * (place + 1) / team_size_;
    for (int i = tiles_ * place / team_size_; i < last; ++i) body(tile(i));
  }

  // The same, by chunks.
  template <class Body>
  void each_chunk(int place, Body body) const {
    const auto begin = [&](int chunk) { return (tiles_ * chunk + chunks_ - 1) / chunks_; };
    const int last = chunks_ * (place + 1) / team_size_;
    for (int chunk = chunks_ * place / team_size_; chunk < last; ++chunk)
      for (int i = begin(chunk); i < begin(chunk + 1); ++i) body(Chunk{chunk, i == begin(chunk), tile(i)});
  }

  void tail(std::int64_t item, int tile);
  void unit(std::int64_t unit, Team& team, Member& m, int place);
  void output(std::int64_t unit, Team& team, Member& m, int place);
  void mix_sums(std::int64_t unit, int index, Team& team, Member& m, const Chunk& c) const;
  void mix(std::int64_t unit, int index, Team& team, Member& m, int place);
  void block(std::int64_t unit, int index, Team& team, Member& m, int place);
  void sum_taps(std::int64_t unit, int index, Member& m) const;
  void add_taps(std::int64_t unit, int index, const Member& m) const;
  void input(std::int64_t unit, Team& team, Member& m, int place);
  void input_gradient(std::int64_t item, int tile, Member& m);
  void slopes();

  // Items add to the same gradients one after the other, in a fixed order, so that no sum depends on the threads.
  void wait_for_turn(std::int64_t unit, int step) const;
  void end_turn(std::int64_t unit, int step, Team& team, int place);
  int turn(std::int64_t unit, int step) const { return instrument(unit) * (2 + 2 * s_.blocks()) + step; }
  // The columns [first, last) of a matrix.
  struct Columns {
    int first, last;
  };
  // The sums of the chunks: rows of length ld, at a distance of `distance`.
  struct WeightParts {
    const float* values;
    std::ptrdiff_t distance, ld;
  };
  Columns share(int columns, int place) const;
  template <class Sum>
  void add(std::int64_t unit, float* gradients, const Sum* values, int count, Columns columns) const;
  template <class Sum>
  void add_norm(std::int64_t unit, const NormTensors<float>& gradients, const Sum* scale, const Sum* shift, int channels,
                int place) const;
  void add_up_columns(const Team& team, Member& m, int first, int count) const;
  void combine(std::int64_t unit, const WeightParts& parts, int outputs, int inputs, const float* weights,
               float* gradient, const NormWeights* norm, float* norm_sums, const Member& m, int place) const;
  float* next_norm(Team& team, Member& m, int place) const;

  const Stage& stage_;
  const StageSizes& s_;
  const Passes& passes_;
  const BackwardWeights& weights_;
  const MaskTensors<const float>& forward_;
  const MaskCall call_;
  const MaskTensors<float> gradients_;
  const char* const kept_;
  const KeptMask layout_;
  const std::int64_t units_;
  const int tiles_, chunks_, norms_;
  const int ld_b_, ld_h_, ld_n_, ld_in_, norm_room_;

  Block normed_, tail_sums_;  // gradient of norm_4's output for every unit, and its sums for every tile
  Block input_gradients_;     // gradient of the input convolution's output for every unit
  Block slope_sums_;
  std::vector<NormArrays> input_norms_;
  std::vector<std::atomic<std::int64_t>> turns_;
  Tickets tail_tickets_, unit_tickets_, input_tickets_;
  int team_size_ = 1;
  std::unique_ptr<Barrier> everyone_;
  std::vector<std::unique_ptr<Team>> teams_;
  std::vector<std::unique_ptr<Member>> members_;
};

}  // namespace metatasnet
