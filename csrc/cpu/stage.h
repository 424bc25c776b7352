// The weights of one stage, packed for one instruction set and precision, and the stage's three jobs.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/tensors.h"

namespace metatasnet {

constexpr int kGroups = 8;
constexpr double kEpsilon = 1e-8;  // added to the variance of a group

// Weights of a 1x1 convolution in float32 panels [input][column]; folded copies are made from them.
struct Panels {
  Block data;
  int inputs = 0;
  int panels = 0;
};

// Weights packed once.
struct Constant {
  Block data;
  std::vector<Band> bands;
  PackedMatrix matrix;
};

struct NormWeights {
  std::vector<float> scale, shift;
};

// One instrument's weights of a block.
struct BlockInstrument {
  Constant conv;
  NormWeights norm_1, norm_2;
  std::vector<float> taps;      // [3][padded(H)]
  Panels mix;                   // residual panels (none in the last block), then skip panels
  std::vector<float> mix_bias;  // one for each column of `mix`; zeros if there is no bias
};

// One instrument's weights before and after the blocks.
struct MaskInstrument {
  NormWeights norm_1, norm_2, norm_3, norm_4;
  Panels in_conv, mask_output;
};

struct BlockWeights {
  int dilation = 1;
  float slope_1 = 0, slope_2 = 0;
  int residual_panels = 0;
  std::vector<BlockInstrument> instruments;
};

// (n, instruments, frames, channels) of the caller, with the elements from item to item and from instrument to
// instrument; 0 if they share one.
struct Latents {
  Source source;
  std::int64_t item = 0;
  std::int64_t instrument = 0;
};

// Seconds that the passes of one Stage::mask took, summed over the threads.
struct MaskSeconds {
  double source_moments = 0, input_conv = 0, block_input = 0, depthwise = 0, skip_output = 0, mask_output = 0;
  double mask_product = 0;
  double fold = 0;  // merging of moments, computing group norms, and folding them into weights

  MaskSeconds& operator+=(const MaskSeconds& other);
};

// Inputs and outputs of Stage::mask_gradient. `latent`, `input`, `partial` and `kept` are those of Stage::mask.
struct MaskCall {
  std::int64_t n, frames;
  Latents latent, input, partial;
  const void* kept;
  Latents gradient;         // the masked latent's gradient
  float* latent_gradient;   // (n, frames, latent_ld)
  void* own_gradient;       // (n, instruments, frames, latent_ld) in the storage type; null where `input` is the latent
  void* partial_gradient;   // (n, instruments, frames, padded(partial)) in the storage type; null without `partial`
};

// Inputs and outputs of Stage::encode_gradient; sizes as in Stage::encode. The gradients of weights are padded: rows and
// columns are multiples of kChannels, and the values in the padding have no meaning.
struct EncodeCall {
  std::int64_t n, samples, mel_frames;
  const float* signal;  // (n, samples)
  Source gradient;      // the latent's gradient
  std::int64_t gradient_item;
  const void* kept;
  float* mel_gradient;     // (n, mel_frames, latent_ld), must be zero at first; null without a spectrogram
  float* signal_gradient;  // null, or (n, samples): through the filter bank
  EncoderTensors<float> gradients;
};

// Inputs and outputs of Stage::decode_gradient; gradients of weights are padded as in EncodeCall.
struct DecodeCall {
  std::int64_t n, frames;
  Source latent;
  std::int64_t latent_item;
  const float* gradient;  // the signal's gradient, (n, frames * W)
  const void* kept;
  void* latent_gradient;  // (n, frames, latent_ld) in the storage type
  DecoderTensors<float> gradients;
};

struct BackwardWeights;

class Stage {
 public:
  // Throws std::invalid_argument for missing arrays or wrong shapes. With `training`, the arrays must outlive the stage:
  // backward passes read them. All memory is taken from the pool.
  Stage(const Kernels& kernels, bool bfloat16, const StageSizes& sizes, const Arrays<const float>& arrays, bool training,
        std::shared_ptr<MemoryPool> pool, int threads);
  ~Stage();

  const StageSizes& sizes() const { return sizes_; }
  bool stores_bfloat16() const { return passes_->storage_size == 2; }
  std::int64_t latent_ld() const { return padded(sizes_.N); }
  const char* isa() const { return isa_; }
  MemoryPool& pool() const { return *pool_; }

  // (n, samples) float32 and the spectrogram's share (n, mel_frames, latent_ld), or null for none, to the latent
  // (n, frames, latent_ld).
  // `kept`: null, or room for what the backward pass needs, kept_encoder(n, frames) bytes.
  void encode(const float* signal, std::int64_t n, std::int64_t samples, std::int64_t signal_stride, const float* mel,
              std::int64_t mel_frames, void* latent, void* kept, int threads) const;

  // The masked latent (n, instruments, frames, latent_ld): `latent` times the masks of a network that reads `input` (the
  // latent, or one copy of it for each instrument) and, after the first stage, `partial`.
  MaskSeconds mask(std::int64_t n, std::int64_t frames, const Latents& latent, const Latents& input,
                   const Latents& partial, void* masked, void* kept, int threads) const;

  // Decode the latent, n items `latent_item` elements apart, into the signal (n, frames * W), float32.
  void decode(std::int64_t n, std::int64_t frames, const Source& latent, std::int64_t latent_item, float* signal,
              void* kept, int threads) const;

  // The backward passes compute the gradients of the jobs' inputs, and store those of the weights. The result has the
  // same bits for every number of threads.
  void mask_gradient(const MaskCall& call, const MaskTensors<float>& gradients, int threads) const;

  void encode_gradient(const EncodeCall& call, int threads) const;
  void decode_gradient(const DecodeCall& call, int threads) const;

  std::int64_t kept_encoder(std::int64_t n, std::int64_t frames) const;
  std::int64_t kept_mask(std::int64_t n, std::int64_t frames) const;
  std::int64_t kept_decoder(std::int64_t n, std::int64_t frames) const;

 private:
  friend class MaskingRun;
  friend class MaskingGradient;
  friend class Packer;

  // Packed by the first backward pass.
  const BackwardWeights& backward_weights(int threads) const;

  StageSizes sizes_;
  const char* isa_;
  const Passes* passes_;
  const Kernels* kernels_;
  std::shared_ptr<MemoryPool> pool_;

  Constant bank_, bottleneck_1_, bottleneck_2_;
  Constant expansion_, filters_;

  float slope_1_ = 0, slope_2_ = 0, slope_3_ = 0, slope_4_ = 0;
  std::vector<MaskInstrument> instruments_;
  std::vector<BlockWeights> blocks_;

  EncoderTensors<const float> encoder_;
  MaskTensors<const float> masking_;
  DecoderTensors<const float> decoder_;
  mutable std::once_flag packed_;
  mutable std::unique_ptr<BackwardWeights> backward_;
};

// Distance of the rows of a scratch tile of operands. It avoids strides at which a cache could keep only a few of them.
inline int operand_ld(int channels, int operand_size) {
  const int ld = padded(channels);
  return ld * operand_size % 512 == 0 ? ld + kChannels : ld;
}

inline Source at(const Source& source, std::int64_t elements) {
  Source moved = source;
  moved.data = static_cast<const char*>(source.data) + elements * (source.is_bfloat16 ? 2 : 4);
  return moved;
}

inline Source at(const Latents& latents, std::int64_t item, int instrument) {
  return at(latents.source, item * latents.item + instrument * latents.instrument);
}

inline int tiles_of(std::int64_t frames) { return static_cast<int>((frames + kTile - 1) / kTile); }
inline int rows_of(std::int64_t frames, int tile) {
  const std::int64_t left = frames - static_cast<std::int64_t>(tile) * kTile;
  return static_cast<int>(left < kTile ? left : kTile);
}

}  // namespace metatasnet
