#include "cpu/packer.h"

#include <algorithm>

#include "cpu/team.h"

namespace metatasnet {
namespace {

constexpr std::int64_t kJob = std::int64_t{1} << 17;  // values that one thread packs in a row

}  // namespace

// Split into jobs of a few panels.
void Packer::add(const PackArgs& args, void (*pack)(const PackArgs&)) {
  const std::int64_t distance = args.distance ? args.distance : static_cast<std::int64_t>(args.units) * panel();
  const int panels = static_cast<int>(std::max<std::int64_t>(1, kJob / std::max<std::int64_t>(1, distance)));
  for (int first = args.first; first < args.last; first += panels) {
    PackArgs part = args;
    part.first = first;
    part.last = std::min(args.last, first + panels);
    part.distance = distance;
    part.packed = static_cast<float*>(args.packed) + (first - args.first) * distance;
    jobs_.push_back({part, pack});
  }
}

Panels Packer::allocate(int panels, int inputs) const {
  Panels to;
  to.inputs = inputs;
  to.panels = panels;
  to.data = pool_.take_of<float>(static_cast<std::size_t>(panels) * inputs * panel());
  return to;
}

void Packer::fill(const Panels& to, int first, const Matrix& matrix) {
  PackArgs args{};
  args.source = matrix.data;
  args.stride = matrix.stride;
  args.column_stride = matrix.column_stride;
  args.inputs = args.units = matrix.inputs;
  args.columns = matrix.columns;
  args.last = panels_of(matrix.columns);
  args.packed = to.data.as<float>() + static_cast<std::size_t>(first) * to.inputs * panel();
  add(args, kernels_.float32.pack);
}

Panels Packer::panels(const Matrix& matrix) {
  Panels to = allocate(panels_of(matrix.columns), matrix.inputs);
  fill(to, 0, matrix);
  return to;
}

Constant Packer::constant(const Matrix& matrix, const float* column_scale) {
  return stacked(matrix.inputs, matrix.columns, {{0, matrix, column_scale}});
}

Constant Packer::stacked(int inputs, int columns, const std::vector<Part>& parts) {
  Constant c;
  const int units = units_of(inputs), panels = panels_of(columns);
  const std::int64_t distance = static_cast<std::int64_t>(units) * panel();
  c.data = pool_.take_of<float>(static_cast<std::size_t>(panels * distance));
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const int begin = i ? part.first : 0, end = i + 1 < parts.size() ? parts[i + 1].first : inputs;
    PackArgs args{};
    args.source = part.matrix.data;
    args.stride = part.matrix.stride;
    args.column_stride = part.matrix.column_stride;
    args.inputs = part.matrix.inputs;
    args.units = units_of(end) - begin / passes_.values;
    args.columns = columns;
    args.last = panels;
    args.column_scale = part.column_scale;
    args.distance = distance;
    args.packed = c.data.as<float>() + static_cast<std::int64_t>(begin / passes_.values) * panel();
    add(args, passes_.pack);
  }
  c.matrix = {c.data.as<float>(), nullptr, units, panels};
  return c;
}

void Packer::run(int threads) {
  Tickets tickets(static_cast<std::int64_t>(jobs_.size()));
  run_team(
      static_cast<int>(std::min<std::int64_t>(threads, static_cast<std::int64_t>(jobs_.size()))), [](int) {},
      [&](int) {
        for (std::int64_t ticket; (ticket = tickets.draw()) >= 0;) jobs_[ticket].pack(jobs_[ticket].args);
      });
  jobs_.clear();
}

}  // namespace metatasnet
