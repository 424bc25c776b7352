// Encoder and decoder as sequences of passes over a few items at a time.
#include "cuda/log_power.h"
#include "cuda/overlap_add.h"
#include "cuda/products.h"
#include "cuda/workspace.h"

namespace metatasnet::METATASNET_DEVICES {
namespace {

// A product with one set of weights (outputs, ld) for all items. A `slope` of 1 is the identity, 0 is ReLU.
PointwiseArgs product(std::int64_t frames, const void* weights, int outputs, int ld, float slope, void* out) {
  PointwiseArgs args{};
  args.instruments = 1;
  args.frames = frames;
  args.weights = weights;
  args.outputs = outputs;
  args.ld_weights = ld;
  args.slope = slope;
  args.out = out;
  args.ld_out = padded(outputs);
  return args;
}

Frames rows(const void* data, std::int64_t frames, int channels) {
  const std::int64_t ld = padded(channels);
  return {data, frames * ld, 0, ld, channels};
}

}  // namespace

template <class Arithmetic>
void Stage::encode_in(const Stream& stream, std::int64_t n, std::int64_t samples, const float* signal, void* latent,
                      char* workspace) const {
  using Element = typename Arithmetic::Element;
  const Sizes& s = sizes_;
  const Weights& w = weights_;
  const std::int64_t frames = samples / s.W, others = s.spectrogram_frames(samples);
  const std::int64_t together = items_at_once(n, frames, 1);
  Arena arena(workspace);
  const EncodeBuffers<Element> buffers(arena, s, together, samples);
  for (std::int64_t first = 0; first < n; first += together) {
    const std::int64_t items = n - first < together ? n - first : together;
    const float* own = signal + first * samples;

    if (s.mels) {
      const LogPowerArgs power{samples,
                               own,
                               s.n_fft,
                               s.hop,
                               w.stft_window,
                               reinterpret_cast<const Complex*>(w.twiddles),
                               w.mean,
                               others,
                               padded(s.bins()),
                               buffers.log_power};
      launch<LogPower>(stream, {others, 1, items}, log_power_shared_bytes(s.n_fft), power);
      PointwiseArgs mel = product(others, w.to_mel, s.mels, padded(s.bins()), 1.0f, buffers.mel);
      mel.source[0] = rows(buffers.log_power, others, s.bins());
      launch_pointwise<InSplitTf32, From::frames>(stream, items, mel);
      PointwiseArgs share = product(others, w.to_latent, s.N, padded(s.mels), 1.0f, buffers.share);
      share.source[0] = rows(buffers.mel, others, s.mels);
      share.bias = w.mel_bias;
      launch_pointwise<InSplitTf32, From::frames>(stream, items, share);
    }

    PointwiseArgs bank = product(frames, w.bank, s.bank, padded(s.window), 0.0f, buffers.bank);
    bank.signal = own;
    bank.samples = samples;
    bank.window = s.window;
    bank.stride = s.W;
    bank.padding = (s.window - s.W) / 2;
    launch_pointwise<Arithmetic, From::signal>(stream, items, bank);
    PointwiseArgs hidden = product(frames, w.bottleneck_1, s.N, padded(s.bank), 0.0f, buffers.hidden);
    hidden.source[0] = rows(buffers.bank, frames, s.bank);
    hidden.share = buffers.share;
    hidden.share_frames = others;
    if (s.mels) {
      launch_frames<Arithmetic, From::frames_and_share>(stream, items, hidden, products_);
    } else {
      launch_frames<Arithmetic, From::frames>(stream, items, hidden, products_);
    }
    auto* out = static_cast<Element*>(latent) + first * frames * latent_ld();
    PointwiseArgs last = product(frames, w.bottleneck_2, s.N, padded(s.N), 1.0f, out);
    last.source[0] = rows(buffers.hidden, frames, s.N);
    launch_frames<Arithmetic, From::frames>(stream, items, last, products_);
  }
}

template <class Arithmetic>
void Stage::decode_in(const Stream& stream, std::int64_t n, std::int64_t frames, const Frames& latent, float* signal,
                      char* workspace) const {
  using Element = typename Arithmetic::Element;
  const Sizes& s = sizes_;
  const std::int64_t together = items_at_once(n, frames, 1);
  Arena arena(workspace);
  const DecodeBuffers<Element> buffers(arena, s, together, frames);
  for (std::int64_t first = 0; first < n; first += together) {
    const std::int64_t items = n - first < together ? n - first : together;
    PointwiseArgs expansion = product(frames, weights_.expansion, s.wide, padded(s.N), 0.0f, buffers.wide);
    expansion.source[0] = latent;
    expansion.source[0].data = static_cast<const Element*>(latent.data) + first * latent.item;
    launch_frames<Arithmetic, From::frames>(stream, items, expansion, products_);

    OverlapAddArgs add{};
    add.product = product(frames, weights_.filters, s.window, padded(s.wide), 1.0f, nullptr);
    add.product.source[0] = rows(buffers.wide, frames, s.wide);
    add.overlap = {frames, s.window, s.W, (s.window - s.W) / 2, s.turn, outer_input(s), signal + first * frames * s.W};
    if (products_ == Products::wgmma) {
      launch_overlap_add_wgmma(stream, items, add);
      continue;
    }
    const Grid grid{overlap_add_tiles(frames, s.window, s.W), 1, items};
    launch<OverlapAdd<Arithmetic>>(stream, grid, overlap_add_shared_bytes(s.W), add);
  }
}

template void Stage::encode_in<InBfloat16>(const Stream&, std::int64_t, std::int64_t, const float*, void*, char*) const;
template void Stage::encode_in<InTf32>(const Stream&, std::int64_t, std::int64_t, const float*, void*, char*) const;
template void Stage::encode_in<InFloat32>(const Stream&, std::int64_t, std::int64_t, const float*, void*, char*) const;
template void Stage::decode_in<InBfloat16>(const Stream&, std::int64_t, std::int64_t, const Frames&, float*,
                                           char*) const;
template void Stage::decode_in<InTf32>(const Stream&, std::int64_t, std::int64_t, const Frames&, float*, char*) const;
template void Stage::decode_in<InFloat32>(const Stream&, std::int64_t, std::int64_t, const Frames&, float*,
                                          char*) const;

#if defined(__CUDACC__)
cudaError_t codec_obstacle() { return obstacle<LogPower>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
