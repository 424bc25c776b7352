// One (item, instrument) of the masking network backward, from the softmax's gradients to those of the input
// convolution.
//
// Between two passes there is a sum over all frames; it is complete when the team has passed a barrier.
#include "cpu/masking_gradient.h"

namespace metatasnet {
namespace {

// The values of one instrument of (instruments, rows, columns).
template <class T>
T* of(T* values, int instrument, int rows, int columns) {
  return values + static_cast<std::ptrdiff_t>(instrument) * rows * columns;
}

}  // namespace

void MaskingGradient::unit(std::int64_t unit, Team& team, Member& m, int place) {
  output(unit, team, m, place);
  for (int b = s_.blocks() - 1; b >= 0; --b) {
    mix(unit, b, team, m, place);
    block(unit, b, team, m, place);
  }
  input(unit, team, m, place);
}

// The columns of a matrix that one thread of the team adds up.
MaskingGradient::Columns MaskingGradient::share(int columns, int place) const {
  const int groups = padded(columns) / kChannels;
  return {groups * place / team_size_ * kChannels,
          std::min(columns, groups * (place + 1) / team_size_ * kChannels)};
}

// gradients (instruments, count) += the values of this item, when it is the item's turn.
template <class Sum>
void MaskingGradient::add(std::int64_t unit, float* gradients, const Sum* values, int count, Columns columns) const {
  float* own = of(gradients, instrument(unit), 1, count);
  const bool first = unit < s_.instruments;
  for (int c = columns.first; c < columns.last; ++c)
    own[c] = static_cast<float>((first ? Sum{0} : Sum{own[c]}) + values[c]);
}

template <class Sum>
void MaskingGradient::add_norm(std::int64_t unit, const NormTensors<float>& gradients, const Sum* scale,
                               const Sum* shift, int channels, int place) const {
  add(unit, gradients.scale, scale, channels, share(channels, place));
  add(unit, gradients.shift, shift, channels, share(channels, place));
}

// Add up the columns [first, first + count) of a gradient over the frames.
void MaskingGradient::add_up_columns(const Team& team, Member& m, int first, int count) const {
  const float* parts = team.column_parts.as<float>() + first;
  for (int c = 0; c < count; ++c) {
    m.columns[c] = parts[c];
    for (int chunk = 1; chunk < chunks_; ++chunk) m.columns[c] += parts[chunk * team.columns + c];
  }
}

// Add a member's columns of the gradient of one convolution, in this item's turn. `norm`: the norm before it, whose
// gradients are added to `norm_sums`.
void MaskingGradient::combine(std::int64_t unit, const WeightParts& parts, int outputs, int inputs, const float* weights,
                              float* gradient, const NormWeights* norm, float* norm_sums, const Member& m,
                              int place) const {
  const Columns columns = share(inputs, place);
  CombineArgs args{};
  args.parts = parts.values;
  args.count = chunks_;
  args.part = parts.distance;
  args.ld = parts.ld;
  args.outputs = outputs;
  args.first = columns.first;
  args.last = columns.last;
  args.inputs = inputs;
  if (norm) {
    args.scale = norm->scale.data();
    args.shift = norm->shift.data();
    args.sums = m.columns.data();
    args.weights = of(weights, instrument(unit), outputs, inputs);
    args.scale_gradient = norm_sums;
    args.shift_gradient = norm_sums + norm_room_;
  }
  args.gradient = of(gradient, instrument(unit), outputs, inputs);
  args.add = unit >= s_.instruments;
  passes_.combine(args);
}

// Memory for the gradients of the next norm; it is zero once the team has passed a barrier.
float* MaskingGradient::next_norm(Team& team, Member& m, int place) const {
  m.norm_turn = !m.norm_turn;
  std::vector<float>& room = team.norms[m.norm_turn];
  if (place == 0) std::fill(room.begin(), room.end(), 0.0f);
  return room.data();
}

// Backward through norm_4, mask_output and norm_3, down to the gradient of the skip sum.
void MaskingGradient::output(std::int64_t unit, Team& team, Member& m, int place) {
  const int i = instrument(unit);
  const MaskInstrument& own = stage_.instruments_[i];
  passes_.sum_tiles({tail_sums_.as<float>() + unit * tiles_ * 2 * ld_n_, tiles_, 2 * ld_n_, m.sums.data()});
  const double *shift = m.sums.data(), *scale = shift + ld_n_;
  m.norm.set(statistics(unit, layout_.norm_4()), s_.N, call_.frames, own.norm_4.scale.data(), scale, shift, false);
  m.input.set(statistics(unit, layout_.norm_3()), s_.B);
  float* sums = next_norm(team, m, place);
  each_chunk(place, [&](const Chunk& c) {
    MaskOutputGradientArgs args{};
    args.rows = c.tile.rows;
    args.outputs = s_.N;
    args.normed = normed_.as<char>() + (unit * call_.frames + c.tile.first) * ld_n_ * passes_.storage_size;
    args.kept = kept(unit, layout_.output(), c.tile.first, ld_n_);
    args.ld = ld_n_;
    args.ld_operand = operand_ld(s_.N, passes_.operand_size);
    args.norm = m.norm.gradient(stage_.slope_4_);
    args.input_kept = kept(unit, layout_.skip(), c.tile.first, ld_b_);
    args.inputs = s_.B;
    args.ld_input = ld_b_;
    args.input = m.input.normalise(stage_.slope_3_);
    args.weights = &weights_.instruments[i].mask_output.matrix;
    args.input_gradient = team.skip_gradient(c.tile.first, ld_b_);
    args.ld_input_gradient = 2 * ld_b_;
    args.sum = {team.parts.as<float>() + c.index * team.part, ld_b_, c.empty};
    args.column_sums = team.column_parts.as<float>() + c.index * team.columns;
    args.slope_sum = slope_sum(unit, layout_.norm_4(), c.tile.index);
    args.scratch = m.scratch();
    passes_.mask_output_gradient(args);
  });
  team.barrier.wait();

  add_up_columns(team, m, 0, s_.N);
  wait_for_turn(unit, 0);
  combine(unit, {team.parts.as<float>(), team.part, ld_b_}, s_.N, s_.B, forward_.mask_output, gradients_.mask_output,
          &own.norm_3, sums, m, place);
  add_norm(unit, gradients_.norm_3, sums, sums + norm_room_, s_.B, place);
  add_norm(unit, gradients_.norm_4, scale, shift, s_.N, place);
  end_turn(unit, 0, team, place);

  m.norm.set(statistics(unit, layout_.norm_3()), s_.B, call_.frames, own.norm_3.scale.data(), sums, sums + norm_room_,
             true);
  each_tile(place, [&](const Tile& t) {
    NormGradientArgs args{};
    args.rows = t.rows;
    args.channels = s_.B;
    args.dy = args.gradient = team.skip_gradient(t.first, ld_b_);
    args.ld_dy = args.ld = 2 * ld_b_;
    args.kept = kept(unit, layout_.skip(), t.first, ld_b_);
    args.ld_kept = ld_b_;
    args.norm = m.norm.gradient(stage_.slope_3_);
    args.slope_sum = slope_sum(unit, layout_.norm_3(), t.index);
    passes_.norm_gradient(args);
    // The residual after the last block has no gradient. Set its padding channels to zero, too, as they must be finite.
    for (int r = 0; r < t.rows; ++r) {
      float* skip = args.gradient + r * args.ld;
      std::fill(skip - ld_b_, skip, 0.0f);
      std::fill(skip + s_.B, skip + ld_b_, 0.0f);
    }
  });
  team.barrier.wait();
  each_chunk(place, [&](const Chunk& c) { mix_sums(unit, s_.blocks() - 1, team, m, c); });
  team.barrier.wait();
}

// Add a tile's part of the gradients of a block's residual and skip convolution.
void MaskingGradient::mix_sums(std::int64_t unit, int index, Team& team, Member& m, const Chunk& c) const {
  const bool last = index + 1 == s_.blocks();
  const int norm = layout_.block_norm(index, 2);
  m.input.set(statistics(unit, norm), s_.H);
  MixGradientArgs args{};
  args.rows = c.tile.rows;
  args.gradient = team.skip_gradient(c.tile.first, ld_b_) - (last ? 0 : ld_b_);
  args.ld_gradient = 2 * ld_b_;
  args.outputs = last ? ld_b_ : 2 * ld_b_;
  args.inputs = s_.H;
  args.kept = kept(unit, layout_.depthwise(index), c.tile.first, ld_h_);
  args.ld_kept = ld_h_;
  args.norm = m.input.normalise(stage_.blocks_[index].slope_2);
  args.sum = {team.parts.as<float>() + c.index * team.part, ld_h_, c.empty};
  args.column_sums = team.column_parts.as<float>() + c.index * team.columns;
  args.scratch = m.scratch();
  passes_.mix_gradient(args);
}

// Compute the gradients of a block's residual and skip convolution from their sums, and that of the depthwise output.
void MaskingGradient::mix(std::int64_t unit, int index, Team& team, Member& m, int place) {
  const int i = instrument(unit), norm = layout_.block_norm(index, 2), step = 1 + 2 * (s_.blocks() - 1 - index);
  const BlockWeights& block = stage_.blocks_[index];
  const NormWeights& weights = block.instruments[i].norm_2;
  const BlockTensors<float>& gradients = gradients_.blocks[index];
  const BlockTensors<const float>& forward = forward_.blocks[index];
  float* sums = next_norm(team, m, place);
  team.barrier.wait();
  wait_for_turn(unit, step);
  const auto add_convolution = [&](int first, const float* values, float* gradient, float* bias) {
    add_up_columns(team, m, first, s_.B);
    const float* parts = team.parts.as<float>() + static_cast<std::ptrdiff_t>(first) * ld_h_;
    combine(unit, {parts, team.part, ld_h_}, s_.B, s_.H, values, gradient, &weights, sums, m, place);
    if (bias) add(unit, bias, m.columns.data(), s_.B, share(s_.B, place));
  };
  if (forward.res_out) add_convolution(0, forward.res_out, gradients.res_out, gradients.res_bias);
  add_convolution(forward.res_out ? ld_b_ : 0, forward.skip_out, gradients.skip_out, gradients.skip_bias);
  add_norm(unit, gradients.norm_2, sums, sums + norm_room_, s_.H, place);
  end_turn(unit, step, team, place);

  m.norm.set(statistics(unit, norm), s_.H, call_.frames, weights.scale.data(), sums, sums + norm_room_, true);
  each_tile(place, [&](const Tile& t) {
    HiddenGradientArgs args{};
    args.rows = t.rows;
    args.gradient = team.skip_gradient(t.first, ld_b_) - (forward.res_out ? ld_b_ : 0);
    args.ld_gradient = 2 * ld_b_;
    args.outputs = forward.res_out ? 2 * ld_b_ : ld_b_;
    args.weights = &weights_.instruments[i].mix[index].matrix;
    args.kept = kept(unit, layout_.depthwise(index), t.first, ld_h_);
    args.norm = m.norm.gradient(block.slope_2);
    args.hidden = team.hidden.as<char>() + t.first * ld_h_ * passes_.storage_size;
    args.ld_hidden = ld_h_;
    args.slope_sum = slope_sum(unit, norm, t.index);
    args.scratch = m.scratch();
    passes_.hidden_gradient(args);
  });
  team.barrier.wait();
}

// Gradients of norm_1's scale and shift, stored after the tiles' sums from which they are made.
void MaskingGradient::sum_taps(std::int64_t unit, int index, Member& m) const {
  const BlockInstrument& own = stage_.blocks_[index].instruments[instrument(unit)];
  double *sums = m.sums.data(), *shift = sums + 6 * ld_h_, *scale = shift + ld_h_;
  for (int c = 0; c < s_.H; ++c) {
    shift[c] = scale[c] = 0.0;
    for (int k = 0; k < 3; ++k) {
      const double tap = own.taps[static_cast<std::size_t>(k) * ld_h_ + c];
      shift[c] += tap * sums[2 * k * ld_h_ + c];
      scale[c] += tap * sums[(2 * k + 1) * ld_h_ + c];
    }
  }
}

// Add the gradients of the taps and of norm_1, in this item's turn.
void MaskingGradient::add_taps(std::int64_t unit, int index, const Member& m) const {
  const NormWeights& norm = stage_.blocks_[index].instruments[instrument(unit)].norm_1;
  const double* sums = m.sums.data();
  float* taps = of(gradients_.blocks[index].dconv1d, instrument(unit), s_.H, 3);
  for (int c = 0; c < s_.H; ++c) {
    for (int k = 0; k < 3; ++k) {
      const double more = norm.scale[c] * sums[(2 * k + 1) * ld_h_ + c] + norm.shift[c] * sums[2 * k * ld_h_ + c];
      taps[3 * c + k] = static_cast<float>((unit < s_.instruments ? 0.0 : taps[3 * c + k]) + more);
    }
  }
  add(unit, gradients_.blocks[index].norm_1.shift, sums + 6 * ld_h_, s_.H, {0, s_.H});
  add(unit, gradients_.blocks[index].norm_1.scale, sums + 7 * ld_h_, s_.H, {0, s_.H});
}

// Compute the gradient of a block's input from the gradient of its depthwise output.
void MaskingGradient::block(std::int64_t unit, int index, Team& team, Member& m, int place) {
  const int i = instrument(unit), norm = layout_.block_norm(index, 1), step = 2 + 2 * (s_.blocks() - 1 - index);
  const BlockWeights& block = stage_.blocks_[index];
  const BlockInstrument& own = block.instruments[i];
  m.input.set(statistics(unit, norm), s_.H);
  each_tile(place, [&](const Tile& t) {
    DepthwiseSumsArgs args{};
    args.frames = call_.frames;
    args.first = t.first;
    args.rows = t.rows;
    args.dilation = block.dilation;
    args.channels = s_.H;
    args.hidden = team.hidden.as<void>();
    args.kept = kept(unit, layout_.conv(index));
    args.ld = ld_h_;
    args.norm = m.input.normalise(block.slope_1);
    args.sums = team.tile_sums.as<float>() + static_cast<std::ptrdiff_t>(t.index) * 6 * ld_h_;
    passes_.depthwise_sums(args);
  });
  team.barrier.wait();

  passes_.sum_tiles({team.tile_sums.as<float>(), tiles_, 6 * ld_h_, m.sums.data()});
  sum_taps(unit, index, m);
  const double *shift = m.sums.data() + 6 * ld_h_, *scale = shift + ld_h_;
  m.norm.set(statistics(unit, norm), s_.H, call_.frames, own.norm_1.scale.data(), scale, shift, false);
  if (index == 0) m.narrow.set(statistics(unit, layout_.norm_2()), s_.B);
  each_chunk(place, [&](const Chunk& c) {
    BlockGradientArgs args{};
    args.frames = call_.frames;
    args.first = c.tile.first;
    args.rows = c.tile.rows;
    args.dilation = block.dilation;
    args.channels = s_.H;
    args.hidden = team.hidden.as<void>();
    args.kept = kept(unit, layout_.conv(index));
    args.ld = ld_h_;
    args.taps = own.taps.data();
    args.norm = m.norm.gradient(block.slope_1);
    args.weights = &weights_.instruments[i].conv[index].matrix;
    args.x = kept(unit, layout_.x(index), c.tile.first, ld_b_);
    args.ld_x = ld_b_;
    args.x_gradient = team.skip_gradient(c.tile.first, ld_b_) - ld_b_;
    args.ld_gradient = 2 * ld_b_;
    args.sum = {team.conv_parts.as<float>() + c.index * team.conv_part, ld_b_, c.empty};
    args.slope_sum = slope_sum(unit, norm, c.tile.index);
    args.scratch = m.scratch();
    passes_.block_gradient(args);
    if (index) {
      mix_sums(unit, index - 1, team, m, c);
    } else {
      NormSumsArgs sums{};
      sums.rows = c.tile.rows;
      sums.channels = s_.B;
      sums.dy = args.x_gradient;
      sums.ld_dy = args.ld_gradient;
      sums.kept = kept(unit, layout_.input(), c.tile.first, ld_b_);
      sums.ld_kept = ld_b_;
      sums.norm = m.narrow.normalise(stage_.slope_2_);
      sums.sums = team.stream_sums.as<float>() + static_cast<std::ptrdiff_t>(c.tile.index) * 2 * ld_b_;
      passes_.norm_sums(sums);
    }
  });
  team.barrier.wait();
  wait_for_turn(unit, step);
  if (place == 0) add_taps(unit, index, m);
  combine(unit, {team.conv_parts.as<float>(), team.conv_part, ld_b_}, s_.H, s_.B, nullptr, gradients_.blocks[index].conv1d,
          nullptr, nullptr, m, place);
  end_turn(unit, step, team, place);
}

// norm_2, the input convolution, and the factors of norm_1's backward pass.
void MaskingGradient::input(std::int64_t unit, Team& team, Member& m, int place) {
  const std::int64_t item = unit / s_.instruments;
  const int i = instrument(unit), step = 1 + 2 * s_.blocks();
  const MaskInstrument& own = stage_.instruments_[i];
  passes_.sum_tiles({team.stream_sums.as<float>(), tiles_, 2 * ld_b_, m.sums.data()});
  const double *shift = m.sums.data(), *scale = shift + ld_b_;
  m.norm.set(statistics(unit, layout_.norm_2()), s_.B, call_.frames, own.norm_2.scale.data(), scale, shift, false);
  m.input.set(statistics(unit, layout_.norm_1()), s_.inputs());
  float* sums = next_norm(team, m, place);
  const Source latent = at(call_.input, item, i), partial = at(call_.partial, item, i);
  each_chunk(place, [&](const Chunk& c) {
    NormGradientArgs norm{};
    norm.rows = c.tile.rows;
    norm.channels = s_.B;
    norm.dy = team.skip_gradient(c.tile.first, ld_b_) - ld_b_;
    norm.ld_dy = 2 * ld_b_;
    norm.kept = kept(unit, layout_.input(), c.tile.first, ld_b_);
    norm.ld_kept = ld_b_;
    norm.norm = m.norm.gradient(stage_.slope_2_);
    norm.gradient = input_gradients_.as<float>() + (unit * tiles_ * kTile + c.tile.first) * ld_b_;
    norm.ld = ld_b_;
    norm.slope_sum = slope_sum(unit, layout_.norm_2(), c.tile.index);
    passes_.norm_gradient(norm);
    InputWeightGradientArgs args{};
    args.rows = c.tile.rows;
    args.outputs = s_.B;
    args.gradient = norm.gradient;
    args.ld_gradient = ld_b_;
    args.sources[0] = at(latent, c.tile.first * latent.stride);
    args.sources[1] = at(partial, c.tile.first * partial.stride);
    args.norm = m.input.normalise(stage_.slope_1_);
    args.sum = {team.parts.as<float>() + c.index * team.part, padded(s_.inputs()), c.empty};
    args.column_sums = team.column_parts.as<float>() + c.index * team.columns;
    args.ld_operand = ld_in_;
    args.scratch = m.scratch();
    passes_.input_weight_gradient(args);
  });
  team.barrier.wait();

  add_up_columns(team, m, 0, s_.B);
  wait_for_turn(unit, step);
  combine(unit, {team.parts.as<float>(), team.part, padded(s_.inputs())}, s_.B, s_.inputs(), forward_.in_conv,
          gradients_.in_conv, &own.norm_1, sums, m, place);
  add_norm(unit, gradients_.norm_1, sums, sums + norm_room_, s_.inputs(), place);
  add_norm(unit, gradients_.norm_2, scale, shift, s_.B, place);
  end_turn(unit, step, team, place);
  if (place) return;
  input_norms_[unit].set(statistics(unit, layout_.norm_1()), s_.inputs(), call_.frames, own.norm_1.scale.data(), sums,
                         sums + norm_room_, true);
}

}  // namespace metatasnet
