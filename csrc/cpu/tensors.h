// The tensors of a stage by name: its weights, and their gradients.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace metatasnet {

struct StageSizes {
  int instruments = 0;
  int softmax = 0;                // this many first instruments share a softmax; each of the others has a sigmoid
  int N = 0;                      // latent channels
  int W = 0;                      // samples per latent frame
  int B = 0;                      // channels of the residual stream
  int H = 0;                      // hidden channels
  int partial = 0;                // channels of the previous stage's masked latent
  std::vector<int> kernel_sizes;  // taps of the filters, growing
  std::vector<int> widths;        // decoder channels of each filter
  std::vector<int> dilations;     // one for each block

  int inputs() const { return N + partial; }
  int blocks() const { return static_cast<int>(dilations.size()); }
  int longest() const { return kernel_sizes.back(); }
  int padding() const { return (longest() - W) / 2; }
  int bank() const { return static_cast<int>(kernel_sizes.size()) * (N / 4); }  // outputs of the encoder's filters
  int wide() const;                                                             // inputs of the decoder's filters
};

// Taps [begin, end) of the longest filter's window.
struct Taps {
  int begin, end;
};

Taps taps_of(const StageSizes& sizes, int filter);
// The taps of the filter to which a wide channel of the decoder belongs.
Taps decoder_taps(const StageSizes& sizes, int channel);

// Throws std::invalid_argument for sizes that no stage can have.
void check(const StageSizes& sizes);

// A contiguous float32 array that the caller keeps alive.
template <class T>
struct Array {
  T* data = nullptr;
  std::vector<std::int64_t> shape;
};

template <class T>
using Arrays = std::map<std::string, Array<T>>;

// (instruments, channels) each.
template <class T>
struct NormTensors {
  T* scale;
  T* shift;
};

template <class T>
struct BlockTensors {
  T *prelu_1, *prelu_2;  // (1,)
  NormTensors<T> norm_1, norm_2;
  T* conv1d;   // (instruments, H, B)
  T* dconv1d;  // (instruments, H, 3)
  T* res_out;  // (instruments, B, H); null in the last block
  T* skip_out;
  T *res_bias, *skip_bias;  // (instruments, B); null without biases
};

template <class T>
struct MaskTensors {
  T *prelu_1, *prelu_2, *prelu_3, *prelu_4;  // (1,)
  NormTensors<T> norm_1, norm_2, norm_3, norm_4;
  T* in_conv;      // (instruments, B, N + partial)
  T* mask_output;  // (instruments, N, B)
  std::vector<BlockTensors<T>> blocks;
};

// The encoder's filters are stored one after the other, not interleaved; the inputs of bottleneck_1 have the same
// order.
template <class T>
struct EncoderTensors {
  T* bank;          // (filters N / 4, longest): every filter centred, zeros on both sides
  T* bottleneck_1;  // (N, filters N / 4)
  T* bottleneck_2;  // (N, N)
};

// The decoder's wide channels are stored with the longest filter first, so that the filters that cover a sample come
// first.
template <class T>
struct DecoderTensors {
  T* bottleneck;  // (N, wide)
  T* filters;     // (wide, longest)
};

// Throw std::invalid_argument for missing arrays or wrong shapes.
template <class T>
MaskTensors<T> mask_tensors(const StageSizes& sizes, const Arrays<T>& arrays);
template <class T>
EncoderTensors<T> encoder_tensors(const StageSizes& sizes, const Arrays<T>& arrays);
template <class T>
DecoderTensors<T> decoder_tensors(const StageSizes& sizes, const Arrays<T>& arrays);

}  // namespace metatasnet
