// Collects matrices to pack, and packs them all with several threads.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/stage.h"

namespace metatasnet {

// A matrix [k][column] in memory, of which one of the two strides is 1.
struct Matrix {
  const float* data;
  int inputs, columns;
  std::int64_t stride, column_stride;
};

// `weights` (outputs, inputs) in the layout for x W^T, and in that for the gradient's dy W.
inline Matrix transposed(const float* weights, int outputs, int inputs) { return {weights, inputs, outputs, 1, inputs}; }
inline Matrix as_it_is(const float* weights, int outputs, int inputs) { return {weights, outputs, inputs, inputs, 1}; }

class Packer {
 public:
  Packer(const Kernels& kernels, const Passes& passes, MemoryPool& pool)
      : kernels_(kernels), passes_(passes), pool_(pool) {}

  int panel() const { return kernels_.panel; }
  int panels_of(int columns) const { return (columns + panel() - 1) / panel(); }

  // Allocate float panels for `panels` panels of columns; fill() packs some of them.
  Panels allocate(int panels, int inputs) const;
  void fill(const Panels& to, int first, const Matrix& matrix);
  Panels panels(const Matrix& matrix);

  Constant constant(const Matrix& matrix, const float* column_scale = nullptr);

  // A constant whose column `c` is zero outside range(c). Each panel stores only the smallest range that contains those
  // of its columns.
  template <class RangeOf>
  Constant banded(const Matrix& matrix, RangeOf range);

  // A constant that is 0 except in some rows: each part fills the rows from its first row on.
  struct Part {
    int first;
    Matrix matrix;
    const float* column_scale;
  };
  Constant stacked(int inputs, int columns, const std::vector<Part>& parts);

  // Packs all matrices that were added. Until then their arrays must not change, and the returned panels must not be
  // used.
  void run(int threads);

 private:
  struct Job {
    PackArgs args;
    void (*pack)(const PackArgs&);
  };

  int units_of(int inputs) const { return (inputs + passes_.values - 1) / passes_.values; }
  void add(const PackArgs& args, void (*pack)(const PackArgs&));

  const Kernels& kernels_;
  const Passes& passes_;
  MemoryPool& pool_;
  std::vector<Job> jobs_;
};

template <class RangeOf>
Constant Packer::banded(const Matrix& matrix, RangeOf range) {
  Constant c;
  std::vector<Taps> hulls;
  std::int64_t units_before = 0;
  for (int p = 0; p < panels_of(matrix.columns); ++p) {
    const int first = p * panel(), last = std::min(matrix.columns, first + panel());
    Taps hull = range(first);
    for (int column = first; column < last; ++column) {
      hull = {std::min(hull.begin, range(column).begin), std::max(hull.end, range(column).end)};
    }
    hull.begin = hull.begin / passes_.values * passes_.values;
    const int units = units_of(hull.end - hull.begin);
    hulls.push_back(hull);
    c.bands.push_back({units_before * panel(), hull.begin / passes_.values, units});
    units_before += units;
  }
  c.data = pool_.take_of<float>(static_cast<std::size_t>(units_before) * panel());
  for (int p = 0; p < static_cast<int>(hulls.size()); ++p) {
    PackArgs args{};
    args.source = matrix.data + hulls[p].begin * matrix.stride;
    args.stride = matrix.stride;
    args.column_stride = matrix.column_stride;
    args.inputs = hulls[p].end - hulls[p].begin;
    args.units = c.bands[p].units;
    args.columns = matrix.columns;
    args.first = p;
    args.last = p + 1;
    args.packed = c.data.as<float>() + c.bands[p].offset;
    add(args, passes_.pack);
  }
  c.matrix = {c.data.as<float>(), c.bands.data(), 0, static_cast<int>(hulls.size())};
  return c;
}

}  // namespace metatasnet
