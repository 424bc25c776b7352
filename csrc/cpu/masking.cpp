// The masking network: each (item, instrument) depth-first through all blocks, by one thread or a small team.
//
// One unit of work, an (item, instrument), needs nothing from the others until the softmax, so its activations stay in
// one core's cache and its group norms need no other thread. Where there are more threads than units, teams of threads
// split a unit's frames, with a barrier at each group norm. Tiles, and the order in which their moments are merged, are
// the same for every number of threads, and so are the results, bit for bit.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/stage.h"
#include "cpu/team.h"

namespace metatasnet {
namespace {

// Scale, mean and shift of each channel: n(x) = (x - mean) scale + shift. Padded with zeros.
struct Affine {
  std::vector<float> scale, mean, shift;

  explicit Affine(int channels) : scale(padded(channels)), mean(padded(channels)), shift(padded(channels)) {}
};

// Group norm from the moments of the channels, each over `frames` values.
void group_norm(const double* mean, const double* m2, std::int64_t frames, int channels, const NormWeights& weights,
                Affine& out) {
  const int width = channels / kGroups;
  for (int g = 0; g < kGroups; ++g) {
    const int first = g * width;
    double centre = 0.0, deviations = 0.0;
    for (int c = first; c < first + width; ++c) centre += mean[c];
    centre /= width;
    for (int c = first; c < first + width; ++c) {
      deviations += m2[c] + static_cast<double>(frames) * (mean[c] - centre) * (mean[c] - centre);
    }
    const double variance = deviations / (static_cast<double>(frames) * width);
    const double rstd = 1.0 / std::sqrt(variance + kEpsilon);
    for (int c = first; c < first + width; ++c) {
      out.scale[c] = static_cast<float>(weights.scale[c] * rstd);
      out.mean[c] = static_cast<float>(centre);
      out.shift[c] = weights.shift[c];
    }
  }
}

// Adds the time until its end to a total.
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

// Threads to a unit: the split that leaves the fewest idle, and of those the smallest (fewest barriers).
int team_size(std::int64_t units, int threads) {
  int best = 1;
  double best_time = 0.0;
  for (int size = 1; size <= threads; ++size) {
    const std::int64_t teams = threads / size, rounds = (units + teams - 1) / teams;
    const double time = static_cast<double>(rounds) / size;
    if (size == 1 || time < best_time * 0.95) {
      best = size;
      best_time = time;
    }
  }
  return best;
}

}  // namespace

MaskSeconds& MaskSeconds::operator+=(const MaskSeconds& other) {
  source_moments += other.source_moments;
  input_conv += other.input_conv;
  block_input += other.block_input;
  depthwise += other.depthwise;
  skip_output += other.skip_output;
  mask_output += other.mask_output;
  mask_product += other.mask_product;
  fold += other.fold;
  return *this;
}

// One call of Stage::mask.
class MaskingRun {
 public:
  MaskingRun(const Stage& stage, std::int64_t n, std::int64_t frames, const Latents& latent, const Latents& input,
             const Latents& partial, void* masked)
      : stage_(stage),
        s_(stage.sizes_),
        passes_(*stage.passes_),
        n_(n),
        frames_(frames),
        tiles_(tiles_of(frames)),
        latent_(latent),
        input_(input),
        copies_(input.instrument ? kInstruments : 1),
        partial_(partial),
        masked_(static_cast<char*>(masked)),
        ld_b_(padded(s_.B)),
        ld_h_(padded(s_.H)),
        ld_n_(padded(s_.N)),
        ld_in_(operand_ld(s_.N + s_.partial + kChannels, passes_.operand_size)),
        input_moments_(buffer_of<float>(static_cast<std::size_t>(n) * copies_ * tiles_ * 2 * ld_n_)),
        input_tickets_(n * copies_ * tiles_),
        unit_tickets_(n * kInstruments),
        product_tickets_(n * tiles_) {
    for (std::int64_t u = 0; u < n * kInstruments; ++u) mask_norms_.emplace_back(s_.N);
  }

  void prepare(int threads) {
    team_size_ = team_size(n_ * kInstruments, threads);
    const int teams = threads / team_size_;
    everyone_ = std::make_unique<Barrier>(threads);
    for (int t = 0; t < teams; ++t) teams_.push_back(std::make_unique<Team>(*this));
    for (int t = 0; t < threads; ++t) members_.push_back(std::make_unique<Member>(*this));
  }

  void run(int thread) {
    Member& member = *members_[thread];
    for (std::int64_t ticket; (ticket = input_tickets_.draw()) >= 0;) {
      const Lap lap(member.seconds.source_moments);
      const std::int64_t copy = ticket / tiles_;
      source_moments(at(input_, copy / copies_, static_cast<int>(copy % copies_)), static_cast<int>(ticket % tiles_),
                     input_moments(copy), ld_n_);
    }
    everyone_->wait();
    const int index = thread / team_size_;
    if (index < static_cast<int>(teams_.size())) {
      Team& team = *teams_[index];
      const int place = thread % team_size_;
      for (;;) {
        if (place == 0) team.unit = unit_tickets_.draw();
        team.barrier.wait();
        const std::int64_t unit = team.unit;
        if (unit < 0) break;
        separate(unit, team, member, place);
        team.barrier.wait();
      }
    }
    everyone_->wait();
    const Lap lap(member.seconds.mask_product);
    for (std::int64_t ticket; (ticket = product_tickets_.draw()) >= 0;) {
      product(ticket / tiles_, static_cast<int>(ticket % tiles_));
    }
  }

  MaskSeconds seconds() const {
    MaskSeconds total;
    for (const auto& member : members_) total += member->seconds;
    return total;
  }

 private:
  // What the members of a team share.
  struct Team {
    explicit Team(const MaskingRun& r)
        : barrier(r.team_size_),
          rows(static_cast<std::size_t>(r.tiles_) * kTile),
          x(buffer_of<float>(rows * r.ld_b_)),
          skip(buffer_of<float>(rows * r.ld_b_)),
          a(rows * std::max(r.ld_b_, r.ld_h_) * r.passes_.storage_size),
          b(rows * r.ld_h_ * r.passes_.storage_size) {
      const int widest = std::max({r.ld_b_, r.ld_h_, r.ld_n_, padded(r.s_.partial)});
      for (Buffer& p : partials) p = buffer_of<float>(static_cast<std::size_t>(r.tiles_) * 2 * widest);
      const std::size_t inputs = r.s_.N + r.s_.partial, B = padded(r.s_.B), H = r.s_.H, N = padded(r.s_.N);
      packed = buffer_of<float>(std::max({inputs * B, H * 2 * B, r.s_.B * N}));
      bias = buffer_of<float>(std::max<std::size_t>(2 * B, N));
    }

    Barrier barrier;
    std::int64_t unit = 0;
    std::size_t rows;
    Buffer x, skip, a, b;
    Buffer partials[2];  // of alternate passes: one is written while a slower member still reads the other
    Buffer packed, bias;
  };

  // What each thread has for itself.
  struct Member {
    explicit Member(const MaskingRun& r)
        : widest(std::max({r.s_.N + r.s_.partial, r.s_.B, r.s_.H})),
          mean(padded(widest)),
          m2(padded(widest)),
          norm(widest),
          x_shift(static_cast<std::size_t>(r.ld_b_)),
          taps(3 * static_cast<std::size_t>(r.ld_h_)),
          shift(3 * static_cast<std::size_t>(r.ld_h_)),
          wide(static_cast<std::size_t>(kTile) * std::max({r.ld_in_, r.ld_h_, r.ld_b_}) * r.passes_.operand_size),
          narrow(static_cast<std::size_t>(kTile) * r.ld_b_ * r.passes_.operand_size) {}

    int widest;
    std::vector<double> mean, m2;
    Affine norm;
    std::vector<float> x_shift, taps, shift;
    Buffer wide, narrow;
    MaskSeconds seconds;
  };

  void source_moments(const Source& source, int tile, float* partials, int ld) const {
    SourceMomentsArgs args{};
    args.rows = rows_of(frames_, tile);
    args.source = at(source, static_cast<std::int64_t>(tile) * kTile * source.stride);
    args.slope = stage_.slope_1_;
    args.moments = moments(partials, tile, ld);
    passes_.source_moments(args);
  }

  float* input_moments(std::int64_t copy) const { return input_moments_.as<float>() + copy * tiles_ * 2 * ld_n_; }

  static Moments moments(float* partials, int tile, int ld) {
    float* mean = partials + static_cast<std::ptrdiff_t>(tile) * 2 * ld;
    return {mean, mean + ld};
  }

  void merge(const float* partials, int channels, int ld, Member& member, int first = 0) const {
    const Lap lap(member.seconds.fold);
    passes_.merge({partials, tiles_, frames_, channels, ld, member.mean.data() + first, member.m2.data() + first});
  }

  // One pass: the tiles of a unit that a member works on.
  template <class Body>
  void each_tile(int place, double& seconds, Body body) const {
    const Lap lap(seconds);
    const int last = tiles_ * (place + 1) / team_size_;
    for (int tile = tiles_ * place / team_size_; tile < last; ++tile) {
      body(tile, static_cast<std::ptrdiff_t>(tile) * kTile, rows_of(frames_, tile));
    }
  }

  // The group norm of `member`, folded into the team's copy of a convolution: each member folds some of the panels.
  PackedMatrix fold(const Panels& weights, const float* bias, Team& team, Member& member, int place) const {
    FoldArgs args{};
    args.source = weights.data.as<float>();
    args.inputs = weights.inputs;
    args.first = weights.panels * place / team_size_;
    args.last = weights.panels * (place + 1) / team_size_;
    args.scale = member.norm.scale.data();
    args.shift = member.norm.shift.data();
    args.mean = member.norm.mean.data();
    args.bias = bias;
    args.packed = team.packed.as<float>();
    args.folded_bias = team.bias.as<float>();
    {
      const Lap lap(member.seconds.fold);
      passes_.fold(args);
    }
    team.barrier.wait();
    return {team.packed.as<float>(), nullptr, (weights.inputs + passes_.values - 1) / passes_.values, weights.panels};
  }

  void separate(std::int64_t unit, Team& team, Member& member, int place) {
    input(unit, team, member, place);
    const int i = static_cast<int>(unit % kInstruments);
    for (std::size_t b = 0; b < stage_.blocks_.size(); ++b) {
      block(i, static_cast<int>(b), team, member, place);
    }
    output(unit, team, member, place);
  }

  // From the latents to the residual stream, before its norm.
  void input(std::int64_t unit, Team& team, Member& m, int place) {
    const std::int64_t item = unit / kInstruments;
    const int i = static_cast<int>(unit % kInstruments);
    const Source latent = at(input_, item, i), partial = at(partial_, item, i);
    merge(input_moments(item * copies_ + (copies_ > 1 ? i : 0)), s_.N, ld_n_, m);
    if (s_.partial) {
      const int ld = padded(s_.partial);
      float* partials = team.partials[0].as<float>();
      each_tile(place, m.seconds.source_moments,
                [&](int tile, std::ptrdiff_t, int) { source_moments(partial, tile, partials, ld); });
      team.barrier.wait();
      merge(partials, s_.partial, ld, m, s_.N);
    }
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.N + s_.partial, stage_.norm_1_[i], m.norm);
    const PackedMatrix weights = fold(stage_.in_conv_[i], nullptr, team, m, place);
    each_tile(place, m.seconds.input_conv, [&](int tile, std::ptrdiff_t first, int rows) {
      InputConvArgs args{};
      args.rows = rows;
      args.sources[0] = at(latent, first * latent.stride);
      args.sources[1] = at(partial, first * partial.stride);
      args.source_slope = stage_.slope_1_;
      args.weights = &weights;
      args.bias = team.bias.as<float>();
      args.slope = stage_.slope_2_;
      args.out = team.x.as<float>() + first * ld_b_;
      args.ld_out = ld_b_;
      args.moments = moments(team.partials[1].as<float>(), tile, ld_b_);
      args.operand = m.wide.as<void>();
      args.ld_operand = ld_in_;
      passes_.input_conv(args);
    });
    team.barrier.wait();
  }

  void block(int i, int index, Team& team, Member& m, int place) {
    const BlockWeights& block = stage_.blocks_[index];
    const BlockWeights* before = index ? &stage_.blocks_[index - 1] : nullptr;
    PackedMatrix mix;
    // partials[1] holds the moments of what the norm in front of this block's input sees.
    merge(team.partials[1].as<float>(), before ? s_.H : s_.B, before ? ld_h_ : ld_b_, m);
    if (before) {
      group_norm(m.mean.data(), m.m2.data(), frames_, s_.H, before->norm_2[i], m.norm);
      mix = fold(before->mix[i], before->mix_bias[i].data(), team, m, place);
    } else {
      group_norm(m.mean.data(), m.m2.data(), frames_, s_.B, stage_.norm_2_[i], m.norm);
    }
    for (int c = 0; !before && c < s_.B; ++c) m.x_shift[c] = m.norm.shift[c] - m.norm.mean[c] * m.norm.scale[c];
    each_tile(place, m.seconds.block_input, [&](int tile, std::ptrdiff_t first, int rows) {
      BlockInputArgs args{};
      args.rows = rows;
      args.hidden = before ? team.b.as<char>() + first * ld_h_ * passes_.storage_size : nullptr;
      args.ld_hidden = ld_h_;
      args.x = team.x.as<float>() + first * ld_b_;
      args.skip = team.skip.as<float>() + first * ld_b_;
      args.ld_x = ld_b_;
      args.skip_is_empty = index == 1;
      args.mix = &mix;
      args.residual_panels = before ? before->residual_panels : 0;
      args.mix_bias = team.bias.as<float>();
      args.x_scale = m.norm.scale.data();
      args.x_shift = m.x_shift.data();
      args.conv = &block.conv[i].matrix;
      args.slope = block.slope_1;
      args.out = team.a.as<char>() + first * ld_h_ * passes_.storage_size;
      args.ld_out = ld_h_;
      args.moments = moments(team.partials[0].as<float>(), tile, ld_h_);
      args.hidden_operand = m.wide.as<void>();
      args.x_operand = m.narrow.as<void>();
      passes_.block_input(args);
    });
    team.barrier.wait();

    merge(team.partials[0].as<float>(), s_.H, ld_h_, m);
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.H, block.norm_1[i], m.norm);
    for (int k = 0; k < 3; ++k) {
      for (int c = 0; c < s_.H; ++c) {
        const float tap = block.taps[i][static_cast<std::size_t>(k) * ld_h_ + c];
        m.taps[static_cast<std::size_t>(k) * ld_h_ + c] = tap * m.norm.scale[c];
        m.shift[static_cast<std::size_t>(k) * ld_h_ + c] = tap * (m.norm.shift[c] - m.norm.mean[c] * m.norm.scale[c]);
      }
    }
    each_tile(place, m.seconds.depthwise, [&](int tile, std::ptrdiff_t first, int rows) {
      DepthwiseArgs args{};
      args.frames = frames_;
      args.first = first;
      args.rows = rows;
      args.dilation = block.dilation;
      args.channels = s_.H;
      args.in = team.a.as<void>();
      args.out = team.b.as<void>();
      args.ld = ld_h_;
      args.taps = m.taps.data();
      args.shift = m.shift.data();
      args.slope = block.slope_2;
      args.moments = moments(team.partials[1].as<float>(), tile, ld_h_);
      passes_.depthwise(args);
    });
    team.barrier.wait();
  }

  // From the last block to the activated mask logits and the norm in front of the softmax.
  void output(std::int64_t unit, Team& team, Member& m, int place) {
    const int i = static_cast<int>(unit % kInstruments);
    const BlockWeights& last = stage_.blocks_.back();
    merge(team.partials[1].as<float>(), s_.H, ld_h_, m);
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.H, last.norm_2[i], m.norm);
    const PackedMatrix skip = fold(last.mix[i], last.mix_bias[i].data(), team, m, place);
    each_tile(place, m.seconds.skip_output, [&](int tile, std::ptrdiff_t first, int rows) {
      SkipOutputArgs args{};
      args.rows = rows;
      args.hidden = team.b.as<char>() + first * ld_h_ * passes_.storage_size;
      args.ld_hidden = ld_h_;
      args.skip = team.skip.as<float>() + first * ld_b_;
      args.ld_skip = ld_b_;
      args.skip_is_empty = stage_.blocks_.size() == 1;
      args.weights = &skip;
      args.bias = team.bias.as<float>();
      args.slope = stage_.slope_3_;
      args.out = team.a.as<char>() + first * ld_b_ * passes_.storage_size;
      args.ld_out = ld_b_;
      args.moments = moments(team.partials[0].as<float>(), tile, ld_b_);
      args.hidden_operand = m.wide.as<void>();
      passes_.skip_output(args);
    });
    team.barrier.wait();

    merge(team.partials[0].as<float>(), s_.B, ld_b_, m);
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.B, stage_.norm_3_[i], m.norm);
    const PackedMatrix weights = fold(stage_.mask_output_[i], nullptr, team, m, place);
    char* out = masked_ + unit * frames_ * ld_n_ * passes_.storage_size;
    each_tile(place, m.seconds.mask_output, [&](int tile, std::ptrdiff_t first, int rows) {
      MaskOutputArgs args{};
      args.rows = rows;
      args.in = team.a.as<char>() + first * ld_b_ * passes_.storage_size;
      args.ld_in = ld_b_;
      args.weights = &weights;
      args.bias = team.bias.as<float>();
      args.slope = stage_.slope_4_;
      args.out = out + first * ld_n_ * passes_.storage_size;
      args.ld_out = ld_n_;
      args.moments = moments(team.partials[1].as<float>(), tile, ld_n_);
      args.operand = m.wide.as<void>();
      passes_.mask_output(args);
    });
    team.barrier.wait();
    if (place) return;
    merge(team.partials[1].as<float>(), s_.N, ld_n_, m);
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.N, stage_.norm_4_[i], mask_norms_[unit]);
  }

  void product(std::int64_t item, int tile) {
    const std::int64_t first = static_cast<std::int64_t>(tile) * kTile;
    MaskProductArgs args{};
    args.rows = rows_of(frames_, tile);
    args.latent = at(at(latent_, item, 0), first * latent_.source.stride);
    args.ld = ld_n_;
    for (int i = 0; i < kInstruments; ++i) {
      const std::int64_t unit = item * kInstruments + i;
      args.masked[i] = masked_ + (unit * frames_ + first) * ld_n_ * passes_.storage_size;
      args.scale[i] = mask_norms_[unit].scale.data();
      args.mean[i] = mask_norms_[unit].mean.data();
      args.shift[i] = mask_norms_[unit].shift.data();
    }
    passes_.mask_product(args);
  }

  const Stage& stage_;
  const StageSizes& s_;
  const Passes& passes_;
  const std::int64_t n_, frames_;
  const int tiles_;
  const Latents latent_, input_;
  const int copies_;  // of the input: one for all instruments, or one for each
  const Latents partial_;
  char* const masked_;
  const int ld_b_, ld_h_, ld_n_, ld_in_;

  Buffer input_moments_;
  std::vector<Affine> mask_norms_;
  Tickets input_tickets_, unit_tickets_, product_tickets_;
  int team_size_ = 1;
  std::unique_ptr<Barrier> everyone_;
  std::vector<std::unique_ptr<Team>> teams_;
  std::vector<std::unique_ptr<Member>> members_;
};

MaskSeconds Stage::mask(std::int64_t n, std::int64_t frames, const Latents& latent, const Latents& input,
                        const Latents& partial, void* masked, int threads) const {
  if (n == 0 || frames == 0) return {};
  MaskingRun run(*this, n, frames, latent, input, partial, masked);
  run_team(threads, [&](int team) { run.prepare(team); }, [&](int thread) { run.run(thread); });
  return run.seconds();
}

}  // namespace metatasnet
