// One unit of the masking network, an (item, instrument), from the latents to its mask's logits.
//
// Between two passes there is a group norm. Its moments are complete only when the whole team has passed the barrier;
// then every member merges them for itself. Passes write their moments to two buffers in turn, because a slower member
// may still be merging the previous ones.
#include "cpu/masking_run.h"

namespace metatasnet {

void MaskingRun::source_moments(const Source& source, int tile, float* partials, int ld) const {
  SourceMomentsArgs args{};
  args.rows = rows_of(frames_, tile);
  args.source = at(source, static_cast<std::int64_t>(tile) * kTile * source.stride);
  args.slope = stage_.slope_1_;
  args.moments = moments(partials, tile, ld);
  passes_.source_moments(args);
}

// Fold the group norm of `member` into the team's copy of a convolution: each member folds some of the panels.
PackedMatrix MaskingRun::fold(const Panels& weights, const float* bias, Team& team, Member& member, int place) const {
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

void MaskingRun::separate(std::int64_t unit, Team& team, Member& member, int place) {
  input(unit, team, member, place);
  for (int b = 0; b < s_.blocks(); ++b) block(unit, b, team, member, place);
  output(unit, team, member, place);
}

// Compute the residual stream, before its norm, from the latents.
void MaskingRun::input(std::int64_t unit, Team& team, Member& m, int place) {
  const std::int64_t item = unit / s_.instruments;
  const int i = static_cast<int>(unit % s_.instruments);
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
  group_norm(m.mean.data(), m.m2.data(), frames_, s_.N + s_.partial, stage_.instruments_[i].norm_1, m.norm,
             place == 0 ? statistics(unit, layout_.norm_1()) : nullptr);
  const PackedMatrix weights = fold(stage_.instruments_[i].in_conv, nullptr, team, m, place);
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
    args.kept = kept(unit, layout_.input() + first * ld_b_ * passes_.storage_size);
    passes_.input_conv(args);
  });
  team.barrier.wait();
}

void MaskingRun::block(std::int64_t unit, int index, Team& team, Member& m, int place) {
  const int i = static_cast<int>(unit % s_.instruments);
  const BlockWeights& block = stage_.blocks_[index];
  const BlockInstrument& own = block.instruments[i];
  const BlockWeights* before = index ? &stage_.blocks_[index - 1] : nullptr;
  PackedMatrix mix;
  // partials[1] holds the moments for the norm before this block's input.
  merge(team.partials[1].as<float>(), before ? s_.H : s_.B, before ? ld_h_ : ld_b_, m);
  if (before) {
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.H, before->instruments[i].norm_2, m.norm,
               place == 0 ? statistics(unit, layout_.block_norm(index - 1, 2)) : nullptr);
    mix = fold(before->instruments[i].mix, before->instruments[i].mix_bias.data(), team, m, place);
  } else {
    group_norm(m.mean.data(), m.m2.data(), frames_, s_.B, stage_.instruments_[i].norm_2, m.norm,
               place == 0 ? statistics(unit, layout_.norm_2()) : nullptr);
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
    args.conv = &own.conv.matrix;
    args.slope = block.slope_1;
    args.out = team.a.as<char>() + first * ld_h_ * passes_.storage_size;
    args.ld_out = ld_h_;
    args.moments = moments(team.partials[0].as<float>(), tile, ld_h_);
    args.hidden_operand = m.wide.as<void>();
    args.x_operand = m.narrow.as<void>();
    args.kept_x = kept(unit, layout_.x(index) + first * ld_b_ * passes_.storage_size);
    args.kept = kept(unit, layout_.conv(index) + first * ld_h_ * passes_.storage_size);
    passes_.block_input(args);
  });
  team.barrier.wait();

  merge(team.partials[0].as<float>(), s_.H, ld_h_, m);
  group_norm(m.mean.data(), m.m2.data(), frames_, s_.H, own.norm_1, m.norm,
             place == 0 ? statistics(unit, layout_.block_norm(index, 1)) : nullptr);
  for (int k = 0; k < 3; ++k) {
    for (int c = 0; c < s_.H; ++c) {
      const float tap = own.taps[static_cast<std::size_t>(k) * ld_h_ + c];
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
    args.kept = kept(unit, layout_.depthwise(index));
    passes_.depthwise(args);
  });
  team.barrier.wait();
}

// Compute the activated mask logits and the norm before the softmax from the last block's output.
void MaskingRun::output(std::int64_t unit, Team& team, Member& m, int place) {
  const int i = static_cast<int>(unit % s_.instruments);
  const BlockInstrument& last = stage_.blocks_.back().instruments[i];
  merge(team.partials[1].as<float>(), s_.H, ld_h_, m);
  group_norm(m.mean.data(), m.m2.data(), frames_, s_.H, last.norm_2, m.norm,
             place == 0 ? statistics(unit, layout_.block_norm(s_.blocks() - 1, 2)) : nullptr);
  const PackedMatrix skip = fold(last.mix, last.mix_bias.data(), team, m, place);
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
    args.kept = kept(unit, layout_.skip() + first * ld_b_ * passes_.storage_size);
    passes_.skip_output(args);
  });
  team.barrier.wait();

  merge(team.partials[0].as<float>(), s_.B, ld_b_, m);
  group_norm(m.mean.data(), m.m2.data(), frames_, s_.B, stage_.instruments_[i].norm_3, m.norm,
             place == 0 ? statistics(unit, layout_.norm_3()) : nullptr);
  const PackedMatrix weights = fold(stage_.instruments_[i].mask_output, nullptr, team, m, place);
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
    args.kept = kept(unit, layout_.output() + first * ld_n_ * passes_.storage_size);
    passes_.mask_output(args);
  });
  team.barrier.wait();
  if (place) return;
  merge(team.partials[1].as<float>(), s_.N, ld_n_, m);
  group_norm(m.mean.data(), m.m2.data(), frames_, s_.N, stage_.instruments_[i].norm_4, mask_norms_[unit],
             statistics(unit, layout_.norm_4()));
}

}  // namespace metatasnet
