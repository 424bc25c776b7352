// Packs the weights of a stage, for its jobs and for their backward passes.
#include <algorithm>

#include "cpu/backward_weights.h"
#include "cpu/packer.h"
#include "cpu/stage.h"

namespace metatasnet {
namespace {

// One instrument's weights of a norm.
NormWeights norm_of(const NormTensors<const float>& norm, int instrument, int channels) {
  const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(instrument) * channels;
  return {{norm.scale + first, norm.scale + first + channels}, {norm.shift + first, norm.shift + first + channels}};
}

// One instrument's part of weights (instruments, outputs, inputs).
const float* of(const float* weights, int instrument, int outputs, int inputs) {
  return weights + static_cast<std::ptrdiff_t>(instrument) * outputs * inputs;
}

// A block's residual and skip convolution read the same rows, so they form one matrix, the residual's panels first.
BlockWeights pack_block(Packer& pack, const StageSizes& s, const BlockTensors<const float>& tensors, int dilation) {
  BlockWeights block;
  block.dilation = dilation;
  block.slope_1 = *tensors.prelu_1;
  block.slope_2 = *tensors.prelu_2;
  const int panels = pack.panels_of(s.B);
  block.residual_panels = tensors.res_out ? panels : 0;
  for (int i = 0; i < s.instruments; ++i) {
    BlockInstrument& own = block.instruments.emplace_back();
    own.conv = pack.constant(transposed(of(tensors.conv1d, i, s.H, s.B), s.H, s.B));
    own.norm_1 = norm_of(tensors.norm_1, i, s.H);
    own.norm_2 = norm_of(tensors.norm_2, i, s.H);
    const int width = padded(s.H);
    const float* taps = of(tensors.dconv1d, i, s.H, 3);
    own.taps.assign(3 * static_cast<std::size_t>(width), 0.0f);
    for (int c = 0; c < s.H; ++c)
      for (int k = 0; k < 3; ++k) own.taps[static_cast<std::size_t>(k) * width + c] = taps[3 * c + k];

    own.mix = pack.allocate(block.residual_panels + panels, s.H);
    own.mix_bias.assign(static_cast<std::size_t>(own.mix.panels) * pack.panel(), 0.0f);
    const auto add = [&](int first, const float* weights, const float* bias) {
      pack.fill(own.mix, first, transposed(of(weights, i, s.B, s.H), s.B, s.H));
      if (bias) std::copy_n(of(bias, i, 1, s.B), s.B, own.mix_bias.begin() + first * pack.panel());
    };
    if (tensors.res_out) add(0, tensors.res_out, tensors.res_bias);
    add(block.residual_panels, tensors.skip_out, tensors.skip_bias);
  }
  return block;
}

}  // namespace

Stage::Stage(const Kernels& kernels, bool bfloat16, const StageSizes& sizes, const Arrays<const float>& arrays,
             bool training, std::shared_ptr<MemoryPool> pool, int threads)
    : sizes_(sizes),
      isa_(kernels.name),
      passes_(bfloat16 ? &kernels.bfloat16 : &kernels.float32),
      kernels_(&kernels),
      pool_(std::move(pool)),
      encoder_(encoder_tensors(sizes, arrays)),
      masking_(mask_tensors(sizes, arrays)),
      decoder_(decoder_tensors(sizes, arrays)) {
  const StageSizes& s = sizes_;
  Packer pack(kernels, *passes_, *pool_);
  bank_ = pack.banded(transposed(encoder_.bank, s.bank(), s.longest()),
                      [&](int o) { return taps_of(s, o / (s.N / 4)); });
  bottleneck_1_ = pack.constant(transposed(encoder_.bottleneck_1, s.N, s.bank()));
  bottleneck_2_ = pack.constant(transposed(encoder_.bottleneck_2, s.N, s.N));
  expansion_ = pack.constant(as_it_is(decoder_.bottleneck, s.N, s.wide()));
  std::vector<int> reach(s.longest(), 0);  // wide channels whose filters cover a sample of the window
  for (int c = 0; c < s.wide(); ++c) {
    const Taps taps = decoder_taps(s, c);
    std::fill(reach.begin() + taps.begin, reach.begin() + taps.end, c + 1);
  }
  filters_ = pack.banded(as_it_is(decoder_.filters, s.wide(), s.longest()),
                         [&](int j) { return Taps{0, reach[j]}; });

  slope_1_ = *masking_.prelu_1;
  slope_2_ = *masking_.prelu_2;
  slope_3_ = *masking_.prelu_3;
  slope_4_ = *masking_.prelu_4;
  for (int i = 0; i < s.instruments; ++i) {
    MaskInstrument& own = instruments_.emplace_back();
    own.norm_1 = norm_of(masking_.norm_1, i, s.inputs());
    own.norm_2 = norm_of(masking_.norm_2, i, s.B);
    own.norm_3 = norm_of(masking_.norm_3, i, s.B);
    own.norm_4 = norm_of(masking_.norm_4, i, s.N);
    own.in_conv = pack.panels(transposed(of(masking_.in_conv, i, s.B, s.inputs()), s.B, s.inputs()));
    own.mask_output = pack.panels(transposed(of(masking_.mask_output, i, s.N, s.B), s.N, s.B));
  }
  for (int b = 0; b < s.blocks(); ++b) blocks_.push_back(pack_block(pack, s, masking_.blocks[b], s.dilations[b]));
  pack.run(threads);
  if (training) return;
  encoder_ = {};
  masking_ = {};
  decoder_ = {};
}

Stage::~Stage() = default;

const BackwardWeights& Stage::backward_weights(int threads) const {
  std::call_once(packed_, [&] {
    if (!decoder_.bottleneck) throw std::logic_error("This stage was prepared for inference: it has no backward pass.");
    const StageSizes& s = sizes_;
    Packer pack(*kernels_, *passes_, *pool_);
    auto weights = std::make_unique<BackwardWeights>();
    weights->bottleneck_2 = pack.constant(as_it_is(encoder_.bottleneck_2, s.N, s.N));
    weights->bottleneck_1 = pack.constant(as_it_is(encoder_.bottleneck_1, s.N, s.bank()));
    const auto first_filter = [&](int j) {
      int l = 0;
      while (j < taps_of(s, l).begin || j >= taps_of(s, l).end) ++l;
      return l * (s.N / 4);
    };
    weights->bank = pack.banded(as_it_is(encoder_.bank, s.bank(), s.longest()),
                                [&](int j) { return Taps{first_filter(j), s.bank()}; });
    weights->filters = pack.banded(transposed(decoder_.filters, s.wide(), s.longest()),
                                   [&](int c) { return decoder_taps(s, c); });
    weights->expansion = pack.constant(transposed(decoder_.bottleneck, s.N, s.wide()));
    for (int i = 0; i < s.instruments; ++i) {
      BackwardInstrument& own = weights->instruments.emplace_back();
      const float* in_conv = of(masking_.in_conv, i, s.B, s.inputs());
      const float* norm_1 = of(masking_.norm_1.scale, i, 1, s.inputs());
      own.latent = pack.constant({in_conv, s.B, s.N, s.inputs(), 1}, norm_1);
      if (s.partial) own.partial = pack.constant({in_conv + s.N, s.B, s.partial, s.inputs(), 1}, norm_1 + s.N);
      own.mask_output = pack.constant(as_it_is(of(masking_.mask_output, i, s.N, s.B), s.N, s.B),
                                      of(masking_.norm_3.scale, i, 1, s.B));
      for (const BlockTensors<const float>& block : masking_.blocks) {
        const float* norm_2 = of(block.norm_2.scale, i, 1, s.H);
        own.conv.push_back(pack.constant(as_it_is(of(block.conv1d, i, s.H, s.B), s.H, s.B)));
        std::vector<Packer::Part> parts;
        if (block.res_out) parts.push_back({0, as_it_is(of(block.res_out, i, s.B, s.H), s.B, s.H), norm_2});
        const int first = block.res_out ? padded(s.B) : 0;
        parts.push_back({first, as_it_is(of(block.skip_out, i, s.B, s.H), s.B, s.H), norm_2});
        own.mix.push_back(pack.stacked(first + s.B, s.H, parts));
      }
    }
    pack.run(threads);
    backward_ = std::move(weights);
  });
  return *backward_;
}

}  // namespace metatasnet
