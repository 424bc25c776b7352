// Packing the weights of a stage.
#include <algorithm>
#include <stdexcept>

#include "cpu/stage.h"

namespace metatasnet {
namespace {

class Packer {
 public:
  Packer(const Passes& passes, int panel, int instruments, const Arrays& arrays)
      : passes_(passes), panel_(panel), instruments_(instruments), arrays_(arrays) {}

  bool has(const std::string& name) const { return arrays_.count(name) != 0; }

  const float* get(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) throw std::invalid_argument("The weights lack '" + name + "'.");
    if (found->second.shape != shape) {
      throw std::invalid_argument("The weight '" + name + "' must have shape " + text(shape) + ", got " +
                                  text(found->second.shape) + ".");
    }
    return found->second.data;
  }

  int panel() const { return panel_; }
  int panels_of(int outputs) const { return (outputs + panel_ - 1) / panel_; }

  // Float panels of weights (outputs, inputs), appended after `first` panels.
  void fill(Panels& to, int first, const float* weights, int outputs, int inputs) const {
    for (int p = 0; p < panels_of(outputs); ++p) {
      float* at = to.data.as<float>() + static_cast<std::size_t>(first + p) * inputs * panel_;
      for (int j = 0; j < panel_; ++j) {
        const int o = p * panel_ + j;
        for (int k = 0; k < inputs; ++k) {
          at[static_cast<std::size_t>(k) * panel_ + j] =
              o < outputs ? weights[static_cast<std::size_t>(o) * inputs + k] : 0.0f;
        }
      }
    }
  }

  Panels allocate(int panels, int inputs) const {
    Panels to;
    to.inputs = inputs;
    to.panels = panels;
    to.data = buffer_of<float>(static_cast<std::size_t>(panels) * inputs * panel_);
    return to;
  }

  Panels panels(const float* weights, int outputs, int inputs) const {
    Panels to = allocate(panels_of(outputs), inputs);
    fill(to, 0, weights, outputs, inputs);
    return to;
  }

  Constant constant(const float* weights, int outputs, int inputs) const {
    return banded(
        outputs, [&](int) { return Range{0, inputs}; },
        [&](int k, int o) { return weights[static_cast<std::size_t>(o) * inputs + k]; });
  }

  struct Range {
    int begin, end;
  };

  // A matrix of which column `o` is zero outside range(o): each panel keeps only the hull of its columns' ranges.
  template <class RangeOf, class Weight>
  Constant banded(int outputs, RangeOf range, Weight weight) const {
    Constant c;
    const int values = passes_.values, panels = panels_of(outputs);
    std::vector<Range> hulls;
    std::int64_t units_before = 0;
    for (int p = 0; p < panels; ++p) {
      Range hull = range(p * panel_);
      for (int o = p * panel_; o < std::min(outputs, (p + 1) * panel_); ++o) {
        hull = {std::min(hull.begin, range(o).begin), std::max(hull.end, range(o).end)};
      }
      hull.begin = hull.begin / values * values;
      hulls.push_back(hull);
      const int units = (hull.end - hull.begin + values - 1) / values;
      c.bands.push_back({units_before * panel_, hull.begin / values, units});
      units_before += units;
    }
    c.data = buffer_of<float>(static_cast<std::size_t>(units_before) * panel_);
    std::vector<float> source;
    for (int p = 0; p < panels; ++p) {
      const int inputs = hulls[p].end - hulls[p].begin;
      source.assign(static_cast<std::size_t>(inputs) * panel_, 0.0f);
      for (int o = p * panel_; o < std::min(outputs, (p + 1) * panel_); ++o) {
        const Range r = range(o);
        for (int k = r.begin; k < r.end; ++k) {
          source[static_cast<std::size_t>(k - hulls[p].begin) * panel_ + (o - p * panel_)] = weight(k, o);
        }
      }
      FoldArgs fold{};
      fold.source = source.data();
      fold.inputs = inputs;
      fold.last = 1;
      fold.packed = c.data.as<float>() + c.bands[p].offset;
      passes_.fold(fold);
    }
    c.matrix = {c.data.as<float>(), c.bands.data(), 0, panels};
    return c;
  }

  NormWeights norm(const std::string& name, int instrument, int channels) const {
    const float* scale =
        get(name + ".scale", {instruments_, channels}) + static_cast<std::size_t>(instrument) * channels;
    const float* shift =
        get(name + ".shift", {instruments_, channels}) + static_cast<std::size_t>(instrument) * channels;
    return {{scale, scale + channels}, {shift, shift + channels}};
  }

  const float* convolution(const std::string& name, int instrument, int outputs, int inputs) const {
    return get(name, {instruments_, outputs, inputs}) + static_cast<std::size_t>(instrument) * outputs * inputs;
  }

  float slope(const std::string& name) const { return *get(name, {1}); }

 private:
  static std::string text(const std::vector<std::int64_t>& shape) {
    std::string s = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
    return s + ")";
  }

  const Passes& passes_;
  const int panel_;
  const int instruments_;
  const Arrays& arrays_;
};

// The residual and the skip convolution of a block read the same rows: one matrix, the residual's panels first.
BlockWeights pack_block(const Packer& pack, const StageSizes& s, const std::string& name, int dilation, bool last) {
  BlockWeights block;
  block.dilation = dilation;
  block.slope_1 = pack.slope(name + ".prelu_1");
  block.slope_2 = pack.slope(name + ".prelu_2");
  std::vector<std::string> outputs;
  if (!last) outputs.push_back(name + ".res_out");
  outputs.push_back(name + ".skip_out");
  const int panels = pack.panels_of(s.B);
  block.residual_panels = last ? 0 : panels;
  for (int i = 0; i < s.instruments; ++i) {
    BlockInstrument& own = block.instruments.emplace_back();
    own.conv = pack.constant(pack.convolution(name + ".conv1d", i, s.H, s.B), s.H, s.B);
    own.norm_1 = pack.norm(name + ".norm_1", i, s.H);
    own.norm_2 = pack.norm(name + ".norm_2", i, s.H);
    const int width = padded(s.H);
    const float* taps = pack.convolution(name + ".dconv1d", i, s.H, 3);
    own.taps.assign(3 * static_cast<std::size_t>(width), 0.0f);
    for (int c = 0; c < s.H; ++c)
      for (int k = 0; k < 3; ++k) own.taps[static_cast<std::size_t>(k) * width + c] = taps[3 * c + k];

    own.mix = pack.allocate(panels * static_cast<int>(outputs.size()), s.H);
    own.mix_bias.assign(static_cast<std::size_t>(own.mix.panels) * pack.panel(), 0.0f);
    for (std::size_t part = 0; part < outputs.size(); ++part) {
      const int first = static_cast<int>(part) * panels;
      pack.fill(own.mix, first, pack.convolution(outputs[part], i, s.B, s.H), s.B, s.H);
      if (!pack.has(outputs[part] + ".bias")) continue;
      const float* bias =
          pack.get(outputs[part] + ".bias", {s.instruments, s.B}) + static_cast<std::size_t>(i) * s.B;
      std::copy(bias, bias + s.B, own.mix_bias.begin() + static_cast<std::ptrdiff_t>(first) * pack.panel());
    }
  }
  return block;
}

}  // namespace

void check(const StageSizes& s) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("Impossible stage: ") + what);
  };
  require(s.instruments >= 1 && s.instruments <= kMostInstruments, "there must be 1 to 32 instruments.");
  require(s.N > 0 && s.B > 0 && s.H > 0 && s.W > 0, "N, B, H and W must be positive.");
  require(s.N % kGroups == 0 && s.B % kGroups == 0 && s.H % kGroups == 0, "N, B and H must be multiples of 8.");
  require(s.partial >= 0 && (s.N + s.partial) % kGroups == 0, "the input channels must be a multiple of 8.");
  require(!s.dilations.empty(), "there must be a block.");
  require(!s.kernel_sizes.empty() && s.kernel_sizes.size() == s.widths.size(), "each filter needs a width.");
  for (const int d : s.dilations) require(d > 0, "dilations must be positive.");
  for (const int w : s.widths) require(w > 0, "decoder widths must be positive.");
  int shortest = s.W;
  for (const int k : s.kernel_sizes) {
    require(k >= shortest && (k - s.W) % 2 == 0, "filters must grow and exceed W by even numbers.");
    shortest = k;
  }
}

Stage::Stage(const Kernels& kernels, bool bfloat16, const StageSizes& sizes, const Arrays& arrays)
    : sizes_(sizes),
      isa_(kernels.name),
      passes_(bfloat16 ? &kernels.bfloat16 : &kernels.float32),
      panel_(kernels.panel) {
  const StageSizes& s = sizes_;
  const Packer pack(*passes_, panel_, s.instruments, arrays);
  const int filters = static_cast<int>(s.kernel_sizes.size()), longest = s.kernel_sizes.back();
  const auto centred = [&](int l) { return (longest - s.kernel_sizes[l]) / 2; };  // where filter l begins in the window

  // The bank's columns are kept filter by filter, not interleaved: bottleneck_1 arrives with its inputs in that order.
  const int width = s.N / 4;
  std::vector<const float*> bank, transposed;
  for (int l = 0; l < filters; ++l) {
    bank.push_back(pack.get("encoder.filters." + std::to_string(l), {width, s.kernel_sizes[l]}));
    transposed.push_back(pack.get("decoder.filters." + std::to_string(l), {s.widths[l], s.kernel_sizes[l]}));
  }
  bank_ = pack.banded(
      filters * width,
      [&](int o) { return Packer::Range{centred(o / width), centred(o / width) + s.kernel_sizes[o / width]}; },
      [&](int k, int o) {
        const int l = o / width;
        return bank[l][static_cast<std::size_t>(o % width) * s.kernel_sizes[l] + (k - centred(l))];
      });
  bottleneck_1_ = pack.constant(pack.get("encoder.bottleneck_1", {s.N, filters * width}), s.N, filters * width);
  bottleneck_2_ = pack.constant(pack.get("encoder.bottleneck_2", {s.N, s.N}), s.N, s.N);

  // The decoder's wide channels are kept longest filter first, so that the channels that reach sample j are the first
  // ones.
  std::vector<int> filter_of, channel_of, reach(static_cast<std::size_t>(longest), 0), column_of;
  int before = 0;
  for (int l = 0; l < filters; ++l) {
    column_of.push_back(before);
    before += s.widths[l];
  }
  const int wide = before;
  for (int l = filters - 1; l >= 0; --l) {
    for (int c = 0; c < s.widths[l]; ++c) {
      filter_of.push_back(l);
      channel_of.push_back(c);
    }
    for (int j = centred(l); j < centred(l) + s.kernel_sizes[l]; ++j) reach[j] = static_cast<int>(filter_of.size());
  }
  const float* expansion = pack.get("decoder.bottleneck", {s.N, wide});
  expansion_ = pack.banded(
      wide, [&](int) { return Packer::Range{0, s.N}; },
      [&](int k, int o) {
        return expansion[static_cast<std::size_t>(k) * wide + column_of[filter_of[o]] + channel_of[o]];
      });
  filters_ = pack.banded(
      longest, [&](int j) { return Packer::Range{0, reach[j]}; },
      [&](int k, int j) {
        const int l = filter_of[k];
        return transposed[l][static_cast<std::size_t>(channel_of[k]) * s.kernel_sizes[l] + (j - centred(l))];
      });

  const int in_channels = s.N + s.partial;
  slope_1_ = pack.slope("mask.prelu_1");
  slope_2_ = pack.slope("mask.prelu_2");
  slope_3_ = pack.slope("mask.prelu_3");
  slope_4_ = pack.slope("mask.prelu_4");
  for (int i = 0; i < s.instruments; ++i) {
    MaskInstrument& own = instruments_.emplace_back();
    own.norm_1 = pack.norm("mask.norm_1", i, in_channels);
    own.norm_2 = pack.norm("mask.norm_2", i, s.B);
    own.norm_3 = pack.norm("mask.norm_3", i, s.B);
    own.norm_4 = pack.norm("mask.norm_4", i, s.N);
    own.in_conv = pack.panels(pack.convolution("mask.in_conv", i, s.B, in_channels), s.B, in_channels);
    own.mask_output = pack.panels(pack.convolution("mask.mask_output", i, s.N, s.B), s.N, s.B);
  }
  for (std::size_t b = 0; b < s.dilations.size(); ++b) {
    blocks_.push_back(
        pack_block(pack, s, "mask.blocks." + std::to_string(b), s.dilations[b], b + 1 == s.dilations.size()));
  }
}

}  // namespace metatasnet
