// The masking network as a sequence of passes over a few items at a time.
#include "cuda/depthwise.h"
#include "cuda/elementwise.h"
#include "cuda/fold.h"
#include "cuda/norm.h"
#include "cuda/products.h"
#include "cuda/source_moments.h"
#include "cuda/workspace.h"

namespace metatasnet::METATASNET_DEVICES {
namespace {

// The passes of one group of items.
template <class Arithmetic>
class MaskingRun {
 public:
  using Element = typename Arithmetic::Element;

  MaskingRun(const Stream& stream, Products products, const Sizes& sizes, const Slopes& slopes, const Weights& weights,
             std::int64_t items, std::int64_t frames, const MaskBuffers<Element>& buffers)
      : stream_(stream),
        products_(products),
        s_(sizes),
        slopes_(slopes),
        w_(weights),
        items_(items),
        units_(items * sizes.instruments),
        frames_(frames),
        tiles_(tiles_of(frames)),
        buffers_(buffers),
        hidden_ld_(sizes.blocks() * padded(sizes.H)),
        shares_(sizes, frames),
        persistent_(products == Products::wgmma ? persistent_units(stream, shares_) : 0),
        convolves_(std::is_same_v<Arithmetic, InBfloat16> && sizes.B <= kColumns && sizes.H <= kColumns) {}

  void run(const Frames& latent, const Frames& input, const Frames& partial, Element* masked) {
    clear(stream_, buffers_.arrived, 2 * units_ * sizeof(int));
    enter(input, partial);
    if (persistent_) {
      persistent();
    } else {
      normalise();
      for (int i = 0; i < s_.blocks(); ++i) block(i);
    }
    skip();
    leave(latent, masked);
  }

 private:
  // in_conv(norm_1(prelu_1(concat(input, partial)))), prelu_2, norm_2.
  void enter(const Frames& input, const Frames& partial) {
    const bool shared = input.instrument == 0;
    const int n_ld = padded(s_.N), partial_ld = padded(s_.partial), in_ld = padded(s_.N + s_.partial);
    NormArgs norm = norm_of(s_.N + s_.partial, w_.norm_1, buffers_.affine);
    norm.sources[0] = parts(buffers_.latent_moments, s_.N, 0, SourceMoments<Arithmetic>::columns, shared ? s_.instruments : 1);
    norm.sources[1] = parts(buffers_.partial_moments, s_.partial, s_.N, SourceMoments<Arithmetic>::columns, 1);
    moments(input, norm, 0);
    if (s_.partial) moments(partial, norm, 1);
    launch<Norm>(stream_, {units_}, 0, norm);
    fold(w_.in_conv, nullptr, s_.N, s_.partial, buffers_.affine, in_ld, target(s_.B, n_ld + partial_ld));

    PointwiseArgs conv = product(s_.B, n_ld + partial_ld, s_.B);
    conv.source[0] = input;
    conv.source[1] = partial;
    conv.source_slope = slopes_.input;
    conv.slope = slopes_.first;
    conv.out = buffers_.x;
    conv.statistics = statistics(s_.B, kColumns, w_.norm_2, buffers_.affine);
    launch_frames<Arithmetic, From::activated_frames>(stream_, units_, conv, products_);
  }

  void normalise() {
    NormaliseArgs args{frames_, padded(s_.B), buffers_.affine, buffers_.x, buffers_.operand};
    launch<Normalise<Element>>(stream_, vectors(frames_, s_.B, units_, 8), 0, args);
  }

  // conv1d and prelu_1 of a block.
  PointwiseArgs convolution(int index) const {
    const BlockWeights& block = w_.blocks[index];
    PointwiseArgs conv = product(s_.H, padded(s_.B), s_.H);
    conv.source[0] = activations(buffers_.operand ? static_cast<const void*>(buffers_.operand) : buffers_.x, s_.B);
    conv.weights = block.conv;
    conv.weights_item = 0;
    conv.weights_instrument = std::int64_t{s_.H} * padded(s_.B);
    conv.bias = nullptr;
    conv.slope = slopes_.blocks[2 * index];
    conv.out = buffers_.a;
    conv.statistics = statistics(s_.H, kColumns, block.norm_1, buffers_.affine);
    conv.statistics.norm.taps = block.taps;
    return conv;
  }

  void block(int index) {
    const BlockWeights& block = w_.blocks[index];
    const int h_ld = padded(s_.H);
    if (index == 0 || !convolves_) launch_frames<Arithmetic, From::frames>(stream_, units_, convolution(index), products_);

    DepthwiseArgs depthwise{s_.instruments,
                            frames_,
                            s_.H,
                            h_ld,
                            s_.dilations[index],
                            buffers_.a,
                            block.taps,
                            buffers_.affine,
                            slopes_.blocks[2 * index + 1],
                            hidden(index),
                            hidden_ld_,
                            statistics(s_.H, kChannels, block.norm_2, buffers_.affine_2)};
    launch<Depthwise<Element>>(stream_, {tiles_, h_ld / kChannels, units_}, kChannelsSpace<Element>, depthwise);

    // The block's res_out, except in the last block. Its skip_out is done later, for all blocks together.
    const bool last = index + 1 == s_.blocks();
    const FoldTarget skip{buffers_.folded_skip + index * h_ld, std::int64_t{s_.B} * hidden_ld_, hidden_ld_,
                          buffers_.skip_bias, s_.B, index > 0};
    fold(block.mix, block.mix_bias, s_.H, 0, buffers_.affine_2, h_ld, last ? skip : target(s_.B, h_ld),
         last ? FoldTarget{} : skip);
    if (last) return;
    MixArgs mix{product(s_.B, h_ld, s_.B), buffers_.x, nullptr, {}};
    mix.product.source[0] = activations(hidden(index), hidden_ld_);
    mix.product.source[0].channels = h_ld;
    if (convolves_) {
      mix.next = convolution(index + 1);
      launch_mix_conv(stream_, units_, mix);
    } else {
      mix.operand = buffers_.operand;
      launch_mix<Arithmetic>(stream_, units_, mix);
    }
  }

  // All blocks in one launch, for as many units as the device runs at once. `hidden` then is normalised.
  void persistent() {
    PersistentArgs args{};
    args.instruments = s_.instruments;
    args.blocks = s_.blocks();
    args.B = s_.B;
    args.H = s_.H;
    args.width = s_.H / kGroups;
    args.frames = static_cast<int>(frames_);
    args.x = buffers_.x;
    args.affine = buffers_.affine;
    args.taps = w_.blocks[0].taps;
    args.norm_1 = w_.blocks[0].norm_1;
    args.norm_2 = w_.blocks[0].norm_2;
    args.bias = w_.residual_bias;
    args.border = reinterpret_cast<Bfloat16*>(buffers_.a);
    args.moments = buffers_.moments;
    args.arrived = buffers_.arrived + units_;
    args.out = reinterpret_cast<Bfloat16*>(buffers_.hidden);
    for (int i = 0; i < s_.blocks(); ++i) {
      args.numbers[i] = {s_.dilations[i], slopes_.blocks[2 * i], slopes_.blocks[2 * i + 1]};
    }
    launch_persistent(stream_, units_, persistent_, shares_, args, w_.blocks[0].conv, w_.residual);
  }

  // The skip sum of all blocks as one product, then prelu_3.
  void skip() {
    PointwiseArgs sum = product(s_.B, hidden_ld_, s_.B);
    sum.source[0] = activations(buffers_.hidden, hidden_ld_);
    sum.weights = buffers_.folded_skip;
    sum.bias = buffers_.skip_bias;
    if (persistent_) {
      sum.weights = w_.skip;
      sum.weights_item = 0;
      sum.bias = w_.skip_bias;
      sum.bias_item = 0;
    }
    sum.slope = slopes_.skip;
    sum.out = buffers_.a;
    sum.statistics = statistics(s_.B, kColumns, w_.norm_3, buffers_.affine);
    launch_frames<Arithmetic, From::frames>(stream_, units_, sum, products_);
  }

  // norm_3, mask_output, prelu_4, norm_4, masks of the instruments, product with the latent.
  void leave(const Frames& latent, Element* masked) {
    fold(w_.mask_output, nullptr, s_.B, 0, buffers_.affine, padded(s_.B), target(s_.N, padded(s_.B)));
    PointwiseArgs output = product(s_.N, padded(s_.B), s_.N);
    output.source[0] = activations(buffers_.a, s_.B);
    output.slope = slopes_.output;
    output.out = masked;
    output.statistics = statistics(s_.N, kColumns, w_.norm_4, buffers_.affine);
    launch_frames<Arithmetic, From::frames>(stream_, units_, output, products_);
    const MaskProductArgs args{s_.instruments, s_.softmax, frames_, latent, padded(s_.N), buffers_.affine, masked};
    if (s_.instruments <= kFewInstruments) {
      mask_product<MaskProduct<Element, kFewInstruments>>(args);
    } else {
      mask_product<MaskProduct<Element, kMostInstruments>>(args);
    }
  }

  template <class Kernel>
  void mask_product(const MaskProductArgs& args) {
    const std::int64_t groups = (frames_ + Kernel::kFrames - 1) / Kernel::kFrames;
    launch<Kernel>(stream_, vectors(groups, s_.N, items_, Kernel::channels), 0, args);
  }

  // Compute the moments of one source of the first norm. Then a launch of Norm makes the norm from them.
  void moments(const Frames& source, NormArgs norm, int which) {
    norm.sources[0] = norm.sources[which];
    norm.affine = nullptr;
    const int ld = padded(source.channels), units_of = norm.sources[0].units_of;
    const Statistics own{buffers_.arrived, true, norm};
    const SourceMomentsArgs args{s_.instruments / units_of, frames_, source, ld, slopes_.input, own};
    using Kernel = SourceMoments<Arithmetic>;
    launch<Kernel>(stream_, {tiles_, norm.sources[0].parts, units_ / units_of}, Kernel::shared_bytes, args);
  }

  // Describe the moments that a pass writes, whose blocks have `columns` channels each.
  PartMoments parts(Moments* at, int channels, int first, int columns, int units_of) const {
    return {at, channels, first, columns, (channels + columns - 1) / columns, units_of};
  }

  NormArgs norm_of(int channels, const float* weight, float* affine) const {
    NormArgs norm{};
    norm.instruments = s_.instruments;
    norm.frames = frames_;
    norm.width = channels / kGroups;
    norm.weight = weight;
    norm.ld_affine = padded(channels);
    norm.affine = affine;
    return norm;
  }

  // Describe the moments that a pass writes, whose blocks have `columns` channels each, and the norm made from them.
  Statistics statistics(int channels, int columns, const float* weight, float* affine) const {
    Statistics to{buffers_.arrived, true, norm_of(channels, weight, affine)};
    to.norm.sources[0] = parts(buffers_.moments, channels, 0, columns, 1);
    return to;
  }

  // The buffers that receive the folded weights of the next product.
  FoldTarget target(int outputs, int ld) const {
    return {buffers_.folded, std::int64_t{outputs} * ld, ld, buffers_.folded_bias, outputs, false};
  }

  // `first` and `second` channels, side by side.
  void fold(const float* source, const float* bias, int first, int second, const float* affine, int ld_affine,
            const FoldTarget& to, const FoldTarget& also = {}) {
    FoldArgs args{};
    args.instruments = s_.instruments;
    args.to[0] = to;
    args.to[1] = also;
    args.channels[0] = first;
    args.channels[1] = second;
    args.ld = padded(first) + padded(second);
    args.source = source;
    args.bias = bias;
    args.ld_affine = ld_affine;
    args.affine = affine;
    launch<Fold<Arithmetic>>(stream_, {(to.outputs + also.outputs + 7) / 8, 1, units_}, 0, args);
  }

  // A product with the folded weights, (outputs, ld) of each unit; results in rows of padded(channels).
  PointwiseArgs product(int outputs, int ld, int channels) const {
    PointwiseArgs args{};
    args.instruments = s_.instruments;
    args.frames = frames_;
    args.weights = buffers_.folded;
    args.weights_instrument = std::int64_t{outputs} * ld;
    args.weights_item = s_.instruments * args.weights_instrument;
    args.ld_weights = ld;
    args.bias = buffers_.folded_bias;
    args.bias_instrument = outputs;
    args.bias_item = std::int64_t{s_.instruments} * outputs;
    args.outputs = outputs;
    args.ld_out = padded(channels);
    return args;
  }

  // The buffer of a block's depthwise outputs, in rows of hidden_ld_.
  Element* hidden(int index) const { return buffers_.hidden + index * padded(s_.H); }

  Frames activations(const void* data, int channels) const {
    const std::int64_t ld = padded(channels);
    return {data, s_.instruments * frames_ * ld, frames_ * ld, ld, channels};
  }

  static Grid vectors(std::int64_t rows, int channels, std::int64_t units, int each) {
    return {(rows * (padded(channels) / each) + 255) / 256, 1, units};
  }

  const Stream& stream_;
  Products products_;
  const Sizes& s_;
  const Slopes& slopes_;
  const Weights& w_;
  std::int64_t items_, units_, frames_, tiles_;
  const MaskBuffers<Element>& buffers_;
  int hidden_ld_;
  Shares shares_;
  int persistent_;  // units of a persistent launch; 0: each block is a few launches
  bool convolves_;  // the mixing products also compute the next conv1d (mix.h)
};

template <class Element>
Frames from_item(Frames frames, std::int64_t item) {
  if (frames.data) frames.data = static_cast<const Element*>(frames.data) + item * frames.item;
  return frames;
}

}  // namespace

template <class Arithmetic>
void Stage::mask_in(const Stream& stream, std::int64_t n, std::int64_t frames, const Frames& latent,
                    const Frames& input, const Frames& partial, void* masked, char* workspace) const {
  using Element = typename Arithmetic::Element;
  const std::int64_t together = items_at_once(n, frames, sizes_.instruments);
  Arena arena(workspace);
  const MaskBuffers<Element> buffers(arena, sizes_, together, frames, input.instrument != 0);
  auto* out = static_cast<Element*>(masked);
  for (std::int64_t first = 0; first < n; first += together) {
    const std::int64_t items = n - first < together ? n - first : together;
    MaskingRun<Arithmetic>(stream, products_, sizes_, slopes_, weights_, items, frames, buffers)
        .run(from_item<Element>(latent, first), from_item<Element>(input, first), from_item<Element>(partial, first),
             out + first * sizes_.instruments * frames * latent_ld());
  }
}

template void Stage::mask_in<InBfloat16>(const Stream&, std::int64_t, std::int64_t, const Frames&, const Frames&,
                                         const Frames&, void*, char*) const;
template void Stage::mask_in<InTf32>(const Stream&, std::int64_t, std::int64_t, const Frames&, const Frames&,
                                     const Frames&, void*, char*) const;
template void Stage::mask_in<InFloat32>(const Stream&, std::int64_t, std::int64_t, const Frames&, const Frames&,
                                        const Frames&, void*, char*) const;

#if defined(__CUDACC__)
cudaError_t masking_obstacle() { return obstacle<Norm>(); }
#endif

}  // namespace metatasnet::METATASNET_DEVICES
