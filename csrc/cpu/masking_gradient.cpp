// The masking network backward.
//
// First the tail, one (item, tile) after the other, because the softmax joins the instruments. Then each (item,
// instrument) depth-first through all blocks, as forward, by one thread or a small team. Last the gradients of the
// input, one (item, tile) after the other, because the latent's is a sum over the instruments.
#include "cpu/masking_gradient.h"

#include <algorithm>
#include <thread>

namespace metatasnet {

void NormArrays::set(const GroupStatistics& statistics, int channels) {
  std::fill(mean_.begin() + channels, mean_.end(), 0.0f);
  std::fill(rstd_.begin() + channels, rstd_.end(), 0.0f);
  const int width = channels / kGroups;
  for (int g = 0; g < kGroups; ++g) {
    std::fill_n(mean_.begin() + g * width, width, statistics.mean[g]);
    std::fill_n(rstd_.begin() + g * width, width, statistics.rstd[g]);
  }
}

// dp = rstd (y' - mean of y' - n mean of (y' n)), y' = scale dy, n = (p - mean) rstd; means over a group and all frames.
template <class Sum>
void NormArrays::set(const GroupStatistics& statistics, int channels, std::int64_t frames, const float* scale,
                     const Sum* scale_gradient, const Sum* shift_gradient, bool folded) {
  set(statistics, channels);
  for (auto* values : {&scale_, &offset_, &factor_}) std::fill(values->begin() + channels, values->end(), 0.0f);
  const int width = channels / kGroups;
  for (int g = 0; g < kGroups; ++g) {
    double mean = 0.0, product = 0.0;
    for (int c = g * width; c < (g + 1) * width; ++c) {
      mean += static_cast<double>(scale[c]) * shift_gradient[c];
      product += static_cast<double>(scale[c]) * scale_gradient[c];
    }
    const double count = static_cast<double>(frames) * width, rstd = statistics.rstd[g];
    for (int c = g * width; c < (g + 1) * width; ++c) {
      scale_[c] = static_cast<float>(folded ? rstd : rstd * scale[c]);
      offset_[c] = static_cast<float>(rstd * mean / count);
      factor_[c] = static_cast<float>(rstd * rstd * product / count);
    }
  }
}

template void NormArrays::set(const GroupStatistics&, int, std::int64_t, const float*, const float*, const float*, bool);
template void NormArrays::set(const GroupStatistics&, int, std::int64_t, const float*, const double*, const double*,
                              bool);

MaskingGradient::MaskingGradient(const Stage& stage, const BackwardWeights& weights, const MaskCall& call,
                                 const MaskTensors<float>& gradients)
    : stage_(stage),
      s_(stage.sizes_),
      passes_(*stage.passes_),
      weights_(weights),
      forward_(stage.masking_),
      call_(call),
      gradients_(gradients),
      kept_(static_cast<const char*>(call.kept)),
      layout_(s_, passes_.storage_size, call.frames),
      units_(call.n * s_.instruments),
      tiles_(tiles_of(call.frames)),
      chunks_(std::min(tiles_, kChunks)),
      norms_(4 + 2 * s_.blocks()),
      ld_b_(padded(s_.B)),
      ld_h_(padded(s_.H)),
      ld_n_(padded(s_.N)),
      ld_in_(operand_ld(s_.inputs() + kChannels, passes_.operand_size)),
      norm_room_(padded(std::max({s_.inputs(), s_.B, s_.H}))),
      normed_(stage.pool().take(static_cast<std::size_t>(units_) * call.frames * ld_n_ * passes_.storage_size)),
      tail_sums_(stage.pool().take_of<float>(static_cast<std::size_t>(units_) * tiles_ * 2 * ld_n_)),
      input_gradients_(stage.pool().take_of<float>(static_cast<std::size_t>(units_) * tiles_ * kTile * ld_b_)),
      slope_sums_(stage.pool().take_of<float>(static_cast<std::size_t>(units_) * norms_ * tiles_)),
      turns_(static_cast<std::size_t>(s_.instruments) * (2 + 2 * s_.blocks())),
      tail_tickets_(call.n * tiles_),
      unit_tickets_(units_),
      input_tickets_(call.n * tiles_) {
  for (std::int64_t u = 0; u < units_; ++u) input_norms_.emplace_back(s_.inputs());
}

void MaskingGradient::prepare(int threads) {
  team_size_ = team_size(units_, threads);
  const std::int64_t teams = std::min<std::int64_t>(threads / team_size_, units_);
  everyone_ = std::make_unique<Barrier>(threads);
  for (std::int64_t t = 0; t < teams; ++t) teams_.push_back(std::make_unique<Team>(*this));
  for (int t = 0; t < threads; ++t) members_.push_back(std::make_unique<Member>(*this));
}

void MaskingGradient::run(int thread) {
  Member& member = *members_[thread];
  for (std::int64_t ticket; (ticket = tail_tickets_.draw()) >= 0;) {
    tail(ticket / tiles_, static_cast<int>(ticket % tiles_));
  }
  everyone_->wait();
  const int index = thread / team_size_;
  if (index < static_cast<int>(teams_.size())) {
    Team& team = *teams_[index];
    const int place = thread % team_size_;
    for (;;) {
      if (place == 0) team.unit = unit_tickets_.draw();
      team.barrier.wait();
      const std::int64_t drawn = team.unit;
      if (drawn < 0) break;
      unit(drawn, team, member, place);
      team.barrier.wait();
    }
  }
  everyone_->wait();
  for (std::int64_t ticket; (ticket = input_tickets_.draw()) >= 0;) {
    input_gradient(ticket / tiles_, static_cast<int>(ticket % tiles_), member);
  }
  everyone_->wait();
  if (thread == 0) slopes();
}

void MaskingGradient::tail(std::int64_t item, int tile) {
  const std::int64_t first = static_cast<std::int64_t>(tile) * kTile;
  MaskTailOperand operands[kMostInstruments];
  std::vector<float> constants(static_cast<std::size_t>(s_.instruments) * 4 * ld_n_);
  const int width = s_.N / kGroups;
  for (int i = 0; i < s_.instruments; ++i) {
    const std::int64_t unit = item * s_.instruments + i;
    const GroupStatistics& norm = statistics(unit, layout_.norm_4());
    const NormWeights& weights = stage_.instruments_[i].norm_4;
    float* mean = constants.data() + static_cast<std::size_t>(i) * 4 * ld_n_;
    float *scale = mean + ld_n_, *shift = scale + ld_n_, *rstd = shift + ld_n_;
    for (int c = 0; c < s_.N; ++c) {
      mean[c] = norm.mean[c / width];
      rstd[c] = norm.rstd[c / width];
      scale[c] = weights.scale[c] * rstd[c];
      shift[c] = weights.shift[c];
    }
    const Source gradient = at(call_.gradient, item, i);
    operands[i] = {kept(unit, layout_.output(), first, ld_n_),
                   at(gradient, first * gradient.stride),
                   mean,
                   scale,
                   shift,
                   rstd,
                   normed_.as<char>() + (unit * call_.frames + first) * ld_n_ * passes_.storage_size,
                   tail_sums_.as<float>() + (unit * tiles_ + tile) * 2 * ld_n_};
  }
  MaskTailGradientArgs args{};
  args.rows = rows_of(call_.frames, tile);
  args.latent = at(at(call_.latent, item, 0), first * call_.latent.source.stride);
  args.instruments = s_.instruments;
  args.softmax = s_.softmax;
  args.operands = operands;
  args.ld = ld_n_;
  args.slope = stage_.slope_4_;
  args.latent_gradient = call_.latent_gradient + (item * call_.frames + first) * ld_n_;
  passes_.mask_tail_gradient(args);
}

void MaskingGradient::input_gradient(std::int64_t item, int tile, Member& m) {
  const std::int64_t first = static_cast<std::int64_t>(tile) * kTile;
  const int ld_partial = padded(s_.partial);
  InputGradientOperand operands[kMostInstruments];
  for (int i = 0; i < s_.instruments; ++i) {
    const std::int64_t unit = item * s_.instruments + i, row = unit * call_.frames + first;
    const Source input = at(call_.input, item, i), partial = at(call_.partial, item, i);
    InputGradientOperand& own = operands[i];
    own.gradient = input_gradients_.as<float>() + (unit * tiles_ * kTile + first) * ld_b_;
    own.sources[0] = at(input, first * input.stride);
    own.sources[1] = at(partial, first * partial.stride);
    own.weights[0] = &weights_.instruments[i].latent.matrix;
    own.weights[1] = &weights_.instruments[i].partial.matrix;
    own.norms[0] = input_norms_[unit].gradient(stage_.slope_1_);
    own.norms[1] = input_norms_[unit].gradient(stage_.slope_1_, s_.N);
    own.own_gradient =
        call_.own_gradient ? static_cast<char*>(call_.own_gradient) + row * ld_n_ * passes_.storage_size : nullptr;
    own.partial_gradient =
        s_.partial ? static_cast<char*>(call_.partial_gradient) + row * ld_partial * passes_.storage_size : nullptr;
    own.slope_sum = slope_sum(unit, layout_.norm_1(), tile);
  }
  InputGradientArgs args{};
  args.rows = rows_of(call_.frames, tile);
  args.instruments = s_.instruments;
  args.operands = operands;
  args.ld_gradient = ld_b_;
  args.latent_gradient =
      call_.own_gradient ? nullptr : call_.latent_gradient + (item * call_.frames + first) * ld_n_;
  args.ld = ld_n_;
  args.ld_partial = ld_partial;
  args.scratch = m.scratch();
  passes_.input_gradient(args);
}

void MaskingGradient::slopes() {
  const auto total = [&](int norm, float* gradient) {
    double sum = 0.0;
    for (std::int64_t u = 0; u < units_; ++u)
      for (int tile = 0; tile < tiles_; ++tile) sum += static_cast<double>(*slope_sum(u, norm, tile));
    *gradient = static_cast<float>(sum);
  };
  total(layout_.norm_1(), gradients_.prelu_1);
  total(layout_.norm_2(), gradients_.prelu_2);
  total(layout_.norm_3(), gradients_.prelu_3);
  total(layout_.norm_4(), gradients_.prelu_4);
  for (int b = 0; b < s_.blocks(); ++b) {
    total(layout_.block_norm(b, 1), gradients_.blocks[b].prelu_1);
    total(layout_.block_norm(b, 2), gradients_.blocks[b].prelu_2);
  }
}

void MaskingGradient::wait_for_turn(std::int64_t unit, int step) const {
  while (turns_[turn(unit, step)].load(std::memory_order_acquire) != unit / s_.instruments) std::this_thread::yield();
}

// Every member has added its part.
void MaskingGradient::end_turn(std::int64_t unit, int step, Team& team, int place) {
  team.barrier.wait();
  if (place == 0) turns_[turn(unit, step)].store(unit / s_.instruments + 1, std::memory_order_release);
}

void Stage::mask_gradient(const MaskCall& call, const MaskTensors<float>& gradients, int threads) const {
  MaskingGradient run(*this, backward_weights(threads), call, gradients);
  run_team(threads, [&](int team) { run.prepare(team); }, [&](int thread) { run.run(thread); });
}

}  // namespace metatasnet
