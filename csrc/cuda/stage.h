// A stage's jobs as sequences of launches, for a device and for the emulator.
#pragma once

#include "cuda/interface.h"
#include "cuda/launch.h"

namespace metatasnet::METATASNET_DEVICES {

using device::Array;
using device::Frames;
using device::Place;
using device::Precision;
using device::Products;
using device::Sizes;
using device::Slopes;
using device::Type;

void check(const Sizes& sizes);
std::size_t shared_bytes(const Sizes& sizes);

struct BlockWeights {  // conv, taps and norms of the blocks are one array each
  const void* conv;       // (instruments, H, padded(B))
  const float* taps;      // (instruments, 3, padded(H))
  const float* norm_1;    // (instruments, 2, H)
  const float* norm_2;    // (instruments, 2, H)
  const float* mix;       // (instruments, residual + B, padded(H)): res_out (none in the last block), then skip_out
  const float* mix_bias;  // (instruments, residual + B) or null
};

struct Weights {
  const void *bank, *bottleneck_1, *bottleneck_2;  // (outputs, padded inputs), stored in the type of activations
  const void *expansion, *filters;                 // the same; filters (window, padded(wide))
  const double* twiddles;
  const float *stft_window, *mean, *to_mel, *to_latent, *mel_bias;
  const float *in_conv, *mask_output;               // (instruments, outputs, padded inputs)
  const float *norm_1, *norm_2, *norm_3, *norm_4;  // (instruments, 2, channels)
  std::vector<BlockWeights> blocks;
  // With wgmma alone, stored in bfloat16, of all blocks (of res_out: but the last one's).
  const void* residual;              // (blocks - 1, instruments, B, padded(H))
  const void* skip;                  // (instruments, B, blocks, padded(H))
  const float* residual_bias;        // (blocks - 1, instruments, B) or null
  const float* skip_bias;            // (instruments, B), the sum, or null
};

class Stage final : public device::Stage {
 public:
  Stage(Precision precision, Products products, const Sizes& sizes, const Slopes& slopes,
        const std::map<std::string, Array>& arrays);

  const Sizes& sizes() const override { return sizes_; }
  bool stores_bfloat16() const override { return precision_ == Precision::bfloat16; }
  int latent_ld() const override { return padded(sizes_.N); }

  std::string separate_launches(int device, std::int64_t frames) const override;
  std::int64_t encode_bytes(std::int64_t n, std::int64_t samples) const override;
  std::int64_t mask_bytes(std::int64_t n, std::int64_t frames, bool own_inputs) const override;
  std::int64_t decode_bytes(std::int64_t n, std::int64_t frames) const override;

  void encode(Place place, std::int64_t n, std::int64_t samples, const float* signal, void* latent,
              char* workspace) const override;
  void mask(Place place, std::int64_t n, std::int64_t frames, const Frames& latent, const Frames& input,
            const Frames& partial, void* masked, char* workspace) const override;
  void decode(Place place, std::int64_t n, std::int64_t frames, const Frames& latent, float* signal,
              char* workspace) const override;

 private:
  template <class Arithmetic>
  void encode_in(const Stream&, std::int64_t n, std::int64_t samples, const float*, void*, char*) const;
  template <class Arithmetic>
  void mask_in(const Stream&, std::int64_t n, std::int64_t frames, const Frames&, const Frames&, const Frames&, void*,
               char*) const;
  template <class Arithmetic>
  void decode_in(const Stream&, std::int64_t n, std::int64_t frames, const Frames&, float*, char*) const;

  Precision precision_;
  Products products_;
  Sizes sizes_;
  Slopes slopes_;
  Weights weights_;
};

}  // namespace metatasnet::METATASNET_DEVICES
