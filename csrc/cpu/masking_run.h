// One call of Stage::mask: the data that its threads share, and the work of each thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "cpu/group_norm.h"
#include "cpu/stage.h"
#include "cpu/team.h"

namespace metatasnet {

// Adds the time from its construction to its destruction to a total.
class Lap {
 public:
  explicit Lap(double& total) : total_(total), start_(Clock::now()) {}
  ~Lap() { total_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Lap(const Lap&) = delete;
  Lap& operator=(const Lap&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double& total_;
  const Clock::time_point start_;
};

class MaskingRun {
 public:
  MaskingRun(const Stage& stage, std::int64_t n, std::int64_t frames, const Latents& latent, const Latents& input,
             const Latents& partial, void* masked, void* kept)
      : stage_(stage),
        s_(stage.sizes_),
        passes_(*stage.passes_),
        n_(n),
        frames_(frames),
        tiles_(tiles_of(frames)),
        latent_(latent),
        input_(input),
        copies_(input.instrument ? s_.instruments : 1),
        partial_(partial),
        masked_(static_cast<char*>(masked)),
        kept_(static_cast<char*>(kept)),
        layout_(s_, passes_.storage_size, frames),
        ld_b_(padded(s_.B)),
        ld_h_(padded(s_.H)),
        ld_n_(padded(s_.N)),
        ld_in_(operand_ld(s_.N + s_.partial + kChannels, passes_.operand_size)),
        input_moments_(stage.pool().take_of<float>(static_cast<std::size_t>(n) * copies_ * tiles_ * 2 * ld_n_)),
        input_tickets_(n * copies_ * tiles_),
        unit_tickets_(n * s_.instruments),
        product_tickets_(n * tiles_) {
    for (std::int64_t u = 0; u < n * s_.instruments; ++u) mask_norms_.emplace_back(s_.N);
  }

  // Allocate memory for this many threads, before any of them runs.
  void prepare(int threads);

  // The work of thread number `thread`.
  void run(int thread);

  MaskSeconds seconds() const {
    MaskSeconds total;
    for (const auto& member : members_) total += member->seconds;
    return total;
  }

 private:
  // Data that the threads of a team share.
  struct Team {
    explicit Team(const MaskingRun& r)
        : barrier(r.team_size_),
          rows(static_cast<std::size_t>(r.tiles_) * kTile),
          x(r.stage_.pool().take_of<float>(rows * r.ld_b_)),
          skip(r.stage_.pool().take_of<float>(rows * r.ld_b_)),
          a(r.stage_.pool().take(rows * std::max(r.ld_b_, r.ld_h_) * r.passes_.storage_size)),
          b(r.stage_.pool().take(rows * r.ld_h_ * r.passes_.storage_size)) {
      const int widest = std::max({r.ld_b_, r.ld_h_, r.ld_n_, padded(r.s_.partial)});
      for (Block& p : partials) p = r.stage_.pool().take_of<float>(static_cast<std::size_t>(r.tiles_) * 2 * widest);
      const std::size_t inputs = r.s_.N + r.s_.partial, B = padded(r.s_.B), H = r.s_.H, N = padded(r.s_.N);
      packed = r.stage_.pool().take_of<float>(std::max({inputs * B, H * 2 * B, r.s_.B * N}));
      bias = r.stage_.pool().take_of<float>(std::max<std::size_t>(2 * B, N));
    }

    Barrier barrier;
    std::int64_t unit = 0;
    std::size_t rows;
    Block x, skip, a, b;
    Block partials[2];  // two in turn: one is written while a slower member still reads the other
    Block packed, bias;
  };

  // Data that one thread uses alone.
  struct Member {
    explicit Member(const MaskingRun& r)
        : widest(std::max({r.s_.N + r.s_.partial, r.s_.B, r.s_.H})),
          mean(padded(widest)),
          m2(padded(widest)),
          norm(widest),
          x_shift(static_cast<std::size_t>(r.ld_b_)),
          taps(3 * static_cast<std::size_t>(r.ld_h_)),
          shift(3 * static_cast<std::size_t>(r.ld_h_)),
          wide(r.stage_.pool().take(static_cast<std::size_t>(kTile) * std::max({r.ld_in_, r.ld_h_, r.ld_b_}) *
                                    r.passes_.operand_size)),
          narrow(r.stage_.pool().take(static_cast<std::size_t>(kTile) * r.ld_b_ * r.passes_.operand_size)) {}

    int widest;
    std::vector<double> mean, m2;
    Affine norm;
    std::vector<float> x_shift, taps, shift;
    Block wide, narrow;
    MaskSeconds seconds;
  };

  float* input_moments(std::int64_t copy) const { return input_moments_.as<float>() + copy * tiles_ * 2 * ld_n_; }

  // The address `offset` bytes after the start of a unit's kept values, and the address of a norm's statistics there.
  // Null in inference.
  char* kept(std::int64_t unit, std::int64_t offset) const {
    return kept_ ? kept_ + unit * layout_.bytes() + offset : nullptr;
  }
  GroupStatistics* statistics(std::int64_t unit, int norm) const {
    return kept_ ? layout_.statistics(kept(unit, 0), norm) : nullptr;
  }

  static Moments moments(float* partials, int tile, int ld) {
    float* mean = partials + static_cast<std::ptrdiff_t>(tile) * 2 * ld;
    return {mean, mean + ld};
  }

  void merge(const float* partials, int channels, int ld, Member& member, int first = 0) const {
    const Lap lap(member.seconds.fold);
    passes_.merge({partials, tiles_, frames_, channels, ld, member.mean.data() + first, member.m2.data() + first});
  }

  // One pass: the tiles of a unit that a member processes.
  template <class Body>
  void each_tile(int place, double& seconds, Body body) const {
    const Lap lap(seconds);
    const int last = tiles_ * (place + 1) / team_size_;
    for (int tile = tiles_ * place / team_size_; tile < last; ++tile) {
      body(tile, static_cast<std::ptrdiff_t>(tile) * kTile, rows_of(frames_, tile));
    }
  }

  void source_moments(const Source& source, int tile, float* partials, int ld) const;
  PackedMatrix fold(const Panels& weights, const float* bias, Team& team, Member& member, int place) const;
  void separate(std::int64_t unit, Team& team, Member& member, int place);
  void input(std::int64_t unit, Team& team, Member& m, int place);
  void block(std::int64_t unit, int index, Team& team, Member& m, int place);
  void output(std::int64_t unit, Team& team, Member& m, int place);
  void product(std::int64_t item, int tile);

  const Stage& stage_;
  const StageSizes& s_;
  const Passes& passes_;
  const std::int64_t n_, frames_;
  const int tiles_;
  const Latents latent_, input_;
  const int copies_;  // copies of the input: one for all instruments, or one for each
  const Latents partial_;
  char* const masked_;
  char* const kept_;  // null in inference
  const KeptMask layout_;
  const int ld_b_, ld_h_, ld_n_, ld_in_;

  Block input_moments_;
  std::vector<Affine> mask_norms_;
  Tickets input_tickets_, unit_tickets_, product_tickets_;
  int team_size_ = 1;
  std::unique_ptr<Barrier> everyone_;
  std::vector<std::unique_ptr<Team>> teams_;
  std::vector<std::unique_ptr<Member>> members_;
};

}  // namespace metatasnet
