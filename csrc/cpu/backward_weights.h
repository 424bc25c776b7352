// The weights of a stage in the layout that its backward passes read: for dy W instead of x W^T.
#pragma once

#include <vector>

#include "cpu/stage.h"

namespace metatasnet {

// Where a norm comes before a convolution, its scale is folded into the convolution's columns.
struct BackwardInstrument {
  Constant latent, partial;  // in_conv, by what it reads
  Constant mask_output;
  std::vector<Constant> conv;  // one for each block
  std::vector<Constant> mix;   // per block: panels for the residual's gradient (not in the last), then the skip's
};

struct BackwardWeights {
  Constant bank, bottleneck_1, bottleneck_2;
  Constant expansion, filters;
  std::vector<BackwardInstrument> instruments;
};

}  // namespace metatasnet
