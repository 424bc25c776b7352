// The arguments of the backward passes over a tile of frames; see passes.h for the storage of activations.
//
// Gradients between passes are float32, except that those of the widest and the hidden activations have the storage
// type. Sums over frames go into a tile's partial sums, which sum_tiles adds in the order of the tiles, or into the
// gradient of a weight matrix, to which one thread adds tile after tile.
#pragma once

#include <cstddef>

#include "cpu/passes.h"

namespace metatasnet {

// A group norm of prelu(x), forward, by channel: normalised = (prelu(x) - mean) rstd.
struct Normalise {
  const float* mean;
  const float* rstd;
  float slope;
};

// The same norm backward, by channel: dp = scale dy - offset - factor (prelu(x) - mean), dx = dp prelu'(x).
struct NormGradient {
  const float* scale;
  const float* mean;
  const float* offset;
  const float* factor;
  float slope;
};

// Scratch of one thread: each buffer has room for kTile rows of the widest operands.
struct Scratch {
  void* rows[2];
  void* units[2];
};

// A weight gradient that grows from tile to tile: rows are outputs, columns inputs.
struct WeightSum {
  float* values;
  std::ptrdiff_t ld;
  bool empty;  // nothing was added yet: the memory holds no values
};

// Activations in the layout that a sum over frames reads. A unit is four bytes of one channel: one frame in float32,
// two in bfloat16. Channel c of unit u is at data + (c / Kernels::panel) panel + u unit + (c % Kernels::panel) 4.
struct Units {
  const char* data;
  std::ptrdiff_t panel;
  std::ptrdiff_t unit;
};

// Memory for units that follow each other within a panel.
struct UnitsRoom {
  char* data;
  std::ptrdiff_t panel;
};

// One instrument's part of a MaskTailGradientArgs.
struct MaskTailOperand {
  const void* kept;  // values that mask_output kept: those before its PReLU
  Source gradient;   // the masked latent's gradient
  const float* mean;
  const float* scale;  // scale of the norm before the softmax, weights included
  const float* shift;
  const float* rstd;
  void* normed;  // the gradient of the norm's output, in the storage type
  float* sums;   // [2][ld]: sums of the norm's gradient, and of its product with the normalised values
};

// Compute the gradients of the softmax's inputs, and the masks' part of the latent's gradient, from those of the masked
// latents.
struct MaskTailGradientArgs {
  int rows;
  Source latent;
  int instruments, softmax;
  const MaskTailOperand* operands;
  int ld;
  float slope;
  float* latent_gradient;  // [rows][ld]
};

// Compute the gradients of mask_output's weights and input from the gradient of its norm.
struct MaskOutputGradientArgs {
  int rows;
  int outputs;
  const void* normed;  // the gradient of the norm's output, ld
  const void* kept;    // ld
  int ld;
  int ld_operand;
  NormGradient norm;
  const void* input_kept;  // the skip sum
  int inputs, ld_input;
  Normalise input;
  const PackedMatrix* weights;
  float* input_gradient;
  std::ptrdiff_t ld_input_gradient;
  WeightSum sum;
  float* column_sums;  // sums of the gradient after the norm; added to unless sum.empty
  float* slope_sum;
  Scratch scratch;
};

// gradient = dx of a norm of prelu(kept), computed from dy.
struct NormGradientArgs {
  int rows;
  int channels;
  const float* dy;
  std::ptrdiff_t ld_dy;
  const void* kept;
  int ld_kept;
  NormGradient norm;
  float* gradient;
  std::ptrdiff_t ld;
  float* slope_sum;
};

// Sums of dy, and of dy times the normalised values.
struct NormSumsArgs {
  int rows;
  int channels;
  const float* dy;
  std::ptrdiff_t ld_dy;
  const void* kept;
  int ld_kept;
  Normalise norm;
  float* sums;  // [2][ld_kept]
};

// Weight gradient of the convolution after a norm: sum over frames of gradient (x) normalised values.
struct MixGradientArgs {
  int rows;
  const float* gradient;
  std::ptrdiff_t ld_gradient;
  int outputs;  // columns of the gradient: a multiple of kChannels
  int inputs;
  const void* kept;
  int ld_kept;
  Normalise norm;
  WeightSum sum;
  float* column_sums;  // sums of the gradient's columns; added to unless sum.empty
  Scratch scratch;
};

// Compute the gradient of the depthwise convolution's output from the gradients of a block's output.
struct HiddenGradientArgs {
  int rows;
  const float* gradient;
  std::ptrdiff_t ld_gradient;
  int outputs;  // columns of the gradient: a multiple of kChannels
  const PackedMatrix* weights;
  const void* kept;
  NormGradient norm;
  void* hidden;  // in the storage type
  int ld_hidden; // distance of the rows of hidden and of kept
  float* slope_sum;
  Scratch scratch;
};

// Sums for the gradients of the taps and of the norm before them: for each tap the sum of dv over the frames where the
// tap is inside the signal, and the sum of dv times the normalised values.
struct DepthwiseSumsArgs {
  std::int64_t frames;
  std::int64_t first;
  int rows;
  int dilation;
  int channels;
  const void* hidden;  // gradient of the convolution's output; frame 0 of the signal
  const void* kept;    // values before the norm's PReLU, from frame 0 of the signal
  int ld;
  Normalise norm;
  float* sums;  // [3][2][ld]
};

// The depthwise convolution's input and conv1d: compute the gradient of conv1d's weights, and add that of its input to
// x_gradient.
struct BlockGradientArgs {
  std::int64_t frames;
  std::int64_t first;
  int rows;
  int dilation;
  int channels;
  const void* hidden;  // gradient of the depthwise convolution's output; frame 0 of the signal
  const void* kept;    // values before the norm's PReLU, from frame 0 of the signal
  int ld;
  const float* taps;  // [3][ld]
  NormGradient norm;
  const PackedMatrix* weights;
  const void* x;  // input of conv1d, ld_x
  int ld_x;
  float* x_gradient;
  std::ptrdiff_t ld_gradient;
  WeightSum sum;
  float* slope_sum;
  Scratch scratch;
};

// Weight gradient of the input convolution.
struct InputWeightGradientArgs {
  int rows;
  int outputs;
  const float* gradient;
  int ld_gradient;
  Source sources[2];
  Normalise norm;
  WeightSum sum;
  float* column_sums;  // sums of the gradient; added to unless sum.empty
  int ld_operand;
  Scratch scratch;
};

// One instrument's part of InputGradientArgs. Index 0 is the latent, index 1 the partial latent.
struct InputGradientOperand {
  const float* gradient;
  Source sources[2];
  const PackedMatrix* weights[2];
  NormGradient norms[2];
  void* own_gradient;      // in the storage type, ld
  void* partial_gradient;  // in the storage type, ld_partial; null without a partial latent
  float* slope_sum;
};

// The input convolution's part of the gradients of the latents.
struct InputGradientArgs {
  int rows;
  int instruments;
  const InputGradientOperand* operands;
  int ld_gradient;
  float* latent_gradient;  // added to, [rows][ld]; null: own_gradient is stored instead
  int ld, ld_partial;
  Scratch scratch;  // with room for the gradients of all instruments
};

// The parts of a weight gradient, added in order, become gradients of weights and of the norm before them:
//
//   G = sum of the parts;  dW[o, c] = scale[c] G[o, c] + shift[c] sums[o]
//   dscale[c] += sum_o W[o, c] G[o, c];  dshift[c] += sum_o W[o, c] sums[o]
struct CombineArgs {
  const float* parts;
  int count;
  std::ptrdiff_t part;  // distance of the parts
  std::ptrdiff_t ld;
  int outputs;
  int first, last;  // columns
  int inputs;       // columns of W and dW
  const float* scale;  // null: no norm, dW = G
  const float* shift;
  const float* sums;
  const float* weights;
  float* gradient;  // dW
  bool add;         // add to dW instead of replacing it
  float* scale_gradient;
  float* shift_gradient;
};

// A tile of the encoder backward. Its activations and gradients are also written as units.
struct EncodeGradientArgs {
  int rows;
  Source gradient;  // the latent's gradient
  int channels, bank_channels, longest;
  const void* kept_wide;
  int ld_wide;  // distance of the rows, also of the scratch
  const void* kept_bank;
  int ld_bank;
  const PackedMatrix* bottleneck_1;
  const PackedMatrix* bottleneck_2;
  const void* signal;  // operands; the longest filter's window of the tile's first frame begins here
  int stride;
  void* bank_rows;  // null, or destination of the filter bank's gradient, operands in rows of ld_bank
  UnitsRoom latent_gradient, wide_gradient, bank_gradient, wide, bank, window;
  Scratch scratch;
};

// A tile of the decoder backward. Its activations and gradients are also written as units.
struct DecodeGradientArgs {
  int rows;
  Source latent;
  int wide_channels, longest;
  const void* kept_wide;
  int ld_wide, ld_latent;  // distances of the scratch's rows
  const PackedMatrix* bottleneck;
  const PackedMatrix* filters;
  const void* signal;  // the signal's gradient as operands; the window of the tile's first frame begins here
  int stride;
  void* latent_gradient;  // in the storage type
  int ld_gradient;
  UnitsRoom wide_gradient, latent_units, wide, window;
  Scratch scratch;
};

// Compute some panels of the gradient of the spectrogram's share, from that of the tile's frames, which interpolate it.
struct MelGradientArgs {
  int rows;
  UnitsRoom gradient;
  int first, last;  // panels
  const std::int64_t* mel_frame;
  const std::int64_t* mel_next;
  const float* mel_weight;
  float* mel;
  std::ptrdiff_t ld_mel;
};

// Part of a weight gradient: the sum over units of `rows` (x) `columns`.
struct WeightGradientArgs {
  Units rows;
  int row_panels;
  Units columns;
  int first, last;  // panels of columns
  int units;
  WeightSum sum;
};

// signal[t stride + j] += sum_c rows[t][c] filters[c][j].
struct OverlapAddArgs {
  int rows;
  const void* operands;
  int ld;
  const PackedMatrix* filters;
  float* signal;
  int stride;
};

// The cosine losses between encoded sources in the frames [first, last), and their gradient.
struct CosineArgs {
  std::int64_t frames, first, last;
  int channels;
  int items, instruments;
  int carried;         // 1: item 0 is only a neighbour of item 1; 0: the last item is that of item 0
  const Source* rows;  // [item][instrument], at frame 0
  const float* mask;   // [item][instrument]
  float* norms;        // scratch, [item][instrument]
  float* factors;      // scratch, too
  double* sums;        // written: the sums over pairs of instruments, and over neighbouring items
  float on_pairs, on_neighbours;  // gradients of the two sums
  float* scratch;                 // [instruments][ld]
  void* gradient;                 // (items, instruments, frames, ld) in the storage type
  int ld;
};

// Outputs [first, last) of a generated layer: out[i][o] = bias[o] + sum_e kernel[o][e] hidden[e][i], and backward.
struct ExpandArgs {
  std::int64_t outputs, first, last;
  int instruments, width;
  const float* hidden;  // [width][instruments]
  const float* kernel;  // [outputs][width]
  const float* bias;    // [outputs]; not read backward
  float* out;           // [instruments][outputs]; in the backward pass its gradient, which is read
  float* kernel_gradient;
  float* bias_gradient;
  double* hidden_gradient;  // written, [width][instruments]: the part that these outputs add
  float* scratch;           // 2 [width][kExpanded]
};

constexpr int kExpanded = 64;  // outputs at once

// Add the tiles' partial sums, in order and in float64.
struct SumTilesArgs {
  const float* partials;  // [tile][count]
  int tiles;
  int count;
  double* sums;
};

}  // namespace metatasnet
