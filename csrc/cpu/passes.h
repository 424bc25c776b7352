// The arguments of the forward passes over a tile of frames.
//
// Activations are frames by channels: row `t` of a buffer begins at t * ld. A pass handles one tile of at most kTile
// frames of one (item, instrument), so the caller decides which thread runs which tile, and results do not depend on
// that choice. The passes' scratch buffers have room for whole register tiles: kTile rows, kChannels columns.
//
// For training, a pass also stores what the backward passes need: values before a PReLU, in the storage type, in
// exactly `rows` rows of `kept`. It is null in inference.
#pragma once

#include <cstdint>

namespace metatasnet {

constexpr int kTile = 96;      // frames: a multiple of every register tile's rows (12, 6)
constexpr int kChannels = 32;  // channels are stored in multiples of this, a multiple of every register tile's columns

constexpr int kMostInstruments = 32;

constexpr int padded(int channels) { return (channels + kChannels - 1) / kChannels * kChannels; }

// The units in which a panel's weights are not zero. Offsets are in units of four bytes: one float32 or two bfloat16 of
// the sum.
struct Band {
  std::int64_t offset;  // into the packed data
  int begin;            // first unit of the sum
  int units;
};

struct PackedMatrix {
  const void* data = nullptr;
  const Band* bands = nullptr;  // one per panel; null if every panel has all units
  int units = 0;
  int panels = 0;
};

// A tensor of the caller: float32 or bfloat16, channels contiguous, any distance between frames.
struct Source {
  const void* data = nullptr;
  std::int64_t stride = 0;  // elements from frame to frame
  int channels = 0;
  bool is_bfloat16 = false;
};

// Mean and sum of squared deviations of a tile's frames, channel by channel, of the values as stored.
struct Moments {
  float* mean = nullptr;
  float* m2 = nullptr;
};

// Packs a matrix [k][column] with any strides into panels of columns, rounded to the operand type.
struct PackArgs {
  const float* source;
  std::int64_t stride;         // distance from one k to the next
  std::int64_t column_stride;  // one of the two strides is 1
  int inputs;                  // k
  int units;                   // units of four bytes to pack, with zeros after the inputs
  int columns;                 // columns to pack, with zeros after the last real one
  int first, last;             // panels
  const float* column_scale;   // null: 1
  void* packed;                // where the first panel goes
  std::int64_t distance;       // distance from one panel to the next, in units of four bytes
};

// W'[o][i] = round(W[o][i] scale[i]); bias'[o] = bias[o] + sum_i (W[o][i] shift[i] - W'[o][i] mean[i]).
struct FoldArgs {
  const float* source;  // panels [input][column]
  int inputs;
  int first, last;     // panels
  const float* scale;
  const float* shift;
  const float* mean;
  const float* bias;  // null: none
  void* packed;
  float* folded_bias;
};

// x += hidden W_res; skip += hidden W_skip; out = prelu(x W_conv), with its moments.
struct BlockInputArgs {
  int rows;
  const void* hidden;  // depthwise output of the block before; null in the first block
  int ld_hidden;
  float* x;  // the residual stream, float32 in every precision
  float* skip;
  int ld_x;
  bool skip_is_empty;       // nothing was added to skip yet
  const PackedMatrix* mix;  // residual panels, then skip panels
  int residual_panels;
  const float* mix_bias;
  const float* x_scale;  // first block: x = x * scale + shift instead
  const float* x_shift;
  const PackedMatrix* conv;
  float slope;
  void* out;
  int ld_out;
  Moments moments;
  void* hidden_operand;  // scratch, kTile rows of ld_hidden operands
  void* x_operand;       // scratch, kTile rows of ld_x operands
  void* kept_x;          // where to keep the convolution's input, ld_x
  void* kept;            // the convolution's result, ld_out
};

// out = prelu(skip + hidden W_skip), with its moments.
struct SkipOutputArgs {
  int rows;
  const void* hidden;
  int ld_hidden;
  const float* skip;
  int ld_skip;
  bool skip_is_empty;
  const PackedMatrix* weights;
  const float* bias;
  float slope;
  void* out;
  int ld_out;
  Moments moments;
  void* hidden_operand;  // scratch, kTile rows of ld_hidden operands
  void* kept;            // the skip sum, ld_out
};

// out[t] = prelu(sum over taps k in range of taps[k] in[t + (k - 1) d] + shift[k]), with its moments.
struct DepthwiseArgs {
  std::int64_t frames;  // length of the whole signal
  std::int64_t first;   // first frame of the tile
  int rows;
  int dilation;
  int channels;
  const void* in;  // frame 0 of the signal
  void* out;       // frame 0 of the signal
  int ld;
  const float* taps;   // [3][padded(channels)], the group norm's scale folded in
  const float* shift;  // the same with the group norm's shift times the tap
  float slope;
  Moments moments;
  void* kept;  // the convolution's result; frame 0 of the signal
};

// out = prelu(prelu(concat(sources)) W + bias), with its moments.
struct InputConvArgs {
  int rows;
  Source sources[2];
  float source_slope;
  const PackedMatrix* weights;
  const float* bias;
  float slope;
  float* out;
  int ld_out;
  Moments moments;
  void* operand;  // scratch, kTile rows of ld_operand
  int ld_operand;
  void* kept;  // the product, ld_out
};

// out = prelu(in W + bias), with its moments.
struct MaskOutputArgs {
  int rows;
  const void* in;
  int ld_in;
  const PackedMatrix* weights;
  const float* bias;
  float slope;
  void* out;
  int ld_out;
  Moments moments;
  void* operand;  // scratch, kTile rows of ld_in operands
  void* kept;     // the product, ld_out
};

// One instrument's part of a MaskProductArgs.
struct MaskOperand {
  void* masked;
  const float* scale;
  const float* mean;
  const float* shift;
};

// masked[i] = latent * mask of ((masked[i] - mean[i]) scale[i] + shift[i]), in place. The masks are a softmax over the
// first `softmax` instruments, and a sigmoid for each other one.
struct MaskProductArgs {
  int rows;
  Source latent;
  int instruments, softmax;
  const MaskOperand* operands;
  int ld;
};

// Moments of prelu(source), rounded as the input convolution rounds it.
struct SourceMomentsArgs {
  int rows;
  Source source;
  float slope;
  Moments moments;
};

// Moments of every channel over all tiles, in a fixed order, in float64.
struct MergeArgs {
  const float* partials;  // [tile][mean, m2][ld]
  int tiles;
  std::int64_t frames;
  int channels;
  int ld;
  double* mean;
  double* m2;
};

// latent = W_2 relu(W_1 relu(filter bank of the signal) + interpolated mel share).
struct EncodeArgs {
  int rows;
  const void* signal;  // operands; the longest filter's window of the tile's first frame begins here
  int stride;          // samples from frame to frame
  const PackedMatrix* bank;
  const PackedMatrix* bottleneck_1;
  const PackedMatrix* bottleneck_2;
  const float* mel;  // the spectrogram's share of bottleneck_1, (STFT frames, ld_mel); null: it is 0
  int ld_mel;
  const std::int64_t* mel_frame;  // for each row: interpolate from this STFT frame ...
  const std::int64_t* mel_next;   // ... to this one
  const float* mel_weight;        // ... with this weight
  void* latent;
  int ld_latent;
  void* bank_operand;  // scratch, kTile rows
  int ld_bank;
  void* wide_operand;  // scratch, kTile rows
  int ld_wide;
  void* kept_bank;  // the filter bank's result after its ReLU, in rows of ld_bank
  void* kept_wide;  // the same of W_1, in rows of ld_wide
};

// signal[t stride + j] += sum_c relu(latent W)[t][c] filters[c][j].
struct DecodeArgs {
  int rows;
  Source latent;
  const PackedMatrix* bottleneck;
  const PackedMatrix* filters;
  float* signal;  // the window of the tile's first frame begins here
  int stride;
  void* latent_operand;  // scratch, kTile rows
  int ld_latent;
  void* wide_operand;  // scratch, kTile rows
  int ld_wide;
  void* kept_wide;  // W's result after its ReLU, in rows of ld_wide
  int kept_begin, kept_end;  // rows that are kept: neighbouring tasks also decode the other ones
};

}  // namespace metatasnet
