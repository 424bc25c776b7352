// The generated layers: from each instrument's few hidden values to its weights, forward and backward.
//
// Bytes per output: width + 1 + I floats read or written forward, twice that backward; FLOPs 2 I width forward, 4 I
// width backward. The kernel's rows are short, so a block of them is transposed in the cache first.
//
// Source: Samuel et al. 2020, section 2.2; original model/conv1d.py.
#include "cpu/isa/modes.h"

namespace metatasnet::METATASNET_ISA {
namespace {

constexpr int kVectorsOfBlock = kExpanded / kLanes;

METATASNET_INLINE int block_of(const ExpandArgs& a, std::int64_t o) {
  return a.last - o < kExpanded ? static_cast<int>(a.last - o) : kExpanded;
}

// columns[e][j] = kernel[o + j][e]; zeros after the last output.
METATASNET_INLINE void turn(const ExpandArgs& a, std::int64_t o, int count, float* columns) {
  const float* kernel = a.kernel + o * a.width;
  for (int e = 0; e < a.width; ++e) {
    float* column = columns + e * kExpanded;
    for (int j = 0; j < count; ++j) column[j] = kernel[j * a.width + e];
    for (int j = count; j < kExpanded; ++j) column[j] = 0.0f;
  }
}

METATASNET_INLINE void copy(const float* from, int count, float* to) {
  for (int j = 0; j < count; ++j) to[j] = from[j];
  for (int j = count; j < kExpanded; ++j) to[j] = 0.0f;
}

}  // namespace

void expand(const ExpandArgs& a) {
  for (std::int64_t o = a.first; o < a.last; o += kExpanded) {
    const int count = block_of(a, o);
    turn(a, o, count, a.scratch);
    float values[kExpanded], bias[kExpanded];
    copy(a.bias + o, count, bias);
    for (int i = 0; i < a.instruments; ++i) {
      Vec sums[kVectorsOfBlock];
      for (int v = 0; v < kVectorsOfBlock; ++v) sums[v] = load(bias + v * kLanes);
      for (int e = 0; e < a.width; ++e) {
        const Vec hidden = splat(a.hidden[e * a.instruments + i]);
        for (int v = 0; v < kVectorsOfBlock; ++v) sums[v] += hidden * load(a.scratch + e * kExpanded + v * kLanes);
      }
      for (int v = 0; v < kVectorsOfBlock; ++v) store(values + v * kLanes, sums[v]);
      float* out = a.out + i * a.outputs + o;
      for (int j = 0; j < count; ++j) out[j] = values[j];
    }
  }
}

void expand_gradient(const ExpandArgs& a) {
  float* columns = a.scratch;
  float* gradients = a.scratch + a.width * kExpanded;
  for (int k = 0; k < a.width * a.instruments; ++k) a.hidden_gradient[k] = 0.0;
  for (std::int64_t o = a.first; o < a.last; o += kExpanded) {
    const int count = block_of(a, o);
    turn(a, o, count, columns);
    for (int k = 0; k < a.width * kExpanded; ++k) gradients[k] = 0.0f;
    Vec bias[kVectorsOfBlock] = {};
    for (int i = 0; i < a.instruments; ++i) {
      float values[kExpanded];
      copy(a.out + i * a.outputs + o, count, values);
      Vec given[kVectorsOfBlock];
      for (int v = 0; v < kVectorsOfBlock; ++v) {
        given[v] = load(values + v * kLanes);
        bias[v] += given[v];
      }
      for (int e = 0; e < a.width; ++e) {
        const Vec hidden = splat(a.hidden[e * a.instruments + i]);
        float* gradient = gradients + e * kExpanded;
        Vec products = Vec{};
        for (int v = 0; v < kVectorsOfBlock; ++v) {
          store(gradient + v * kLanes, load(gradient + v * kLanes) + hidden * given[v]);
          products += given[v] * load(columns + e * kExpanded + v * kLanes);
        }
        float lanes[kLanes], sum = 0.0f;
        store(lanes, products);
        for (int l = 0; l < kLanes; ++l) sum += lanes[l];
        a.hidden_gradient[e * a.instruments + i] += static_cast<double>(sum);
      }
    }
    float sums[kExpanded];
    for (int v = 0; v < kVectorsOfBlock; ++v) store(sums + v * kLanes, bias[v]);
    for (int j = 0; j < count; ++j) a.bias_gradient[o + j] = sums[j];
    float* kernel = a.kernel_gradient + o * a.width;
    for (int e = 0; e < a.width; ++e)
      for (int j = 0; j < count; ++j) kernel[j * a.width + e] = gradients[e * kExpanded + j];
  }
}

}  // namespace metatasnet::METATASNET_ISA
