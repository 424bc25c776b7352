"""The public fused operations.

Activations are (n, I, frames, channels) for I instruments. Items, instruments and frames may have any stride, also 0. If the
channels are not contiguous, the tensor is copied first. On a CUDA device the Triton kernels run. On a CPU plain PyTorch code
runs, or, with ``TRITON_INTERPRET=1`` in the environment, the kernels in Triton's interpreter. Statistics and the gradients of
parameters are float32, or float64 for float64 input, which is served only on a CPU. The operations support autograd and
``torch.compile``.

A group norm is a separate operation only where its result must be stored. Elsewhere the operation that writes an activation
also writes its statistics, and the operation that reads the activation applies the norm. The reader's backward returns the
whole gradient, including the part through the statistics, so the statistics themselves carry no gradient:

    c, statistics = pointwise(x, w1, next_slope=slope1)                    # statistics of PReLU(c, slope1)
    b, statistics = depthwise(c, w2, d, slope1, GroupNorm(statistics, gamma1, beta1), slope2)
    x, _ = pointwise(b, w3, residual=x, norm=GroupNorm(statistics, gamma2, beta2))
"""

from .blocks import BlockParameters, blocks, kept_for_backward
from .bottleneck import bottleneck
from .depthwise import depthwise
from .filter_bank import filter_bank, overlap_add
from .generator import Section, generated_parameters
from .in_conv import in_conv
from .log_power import log_power
from .losses import stage_loss
from .mask_tail import mask_tail, masked_latent
from .pointwise import pointwise
from .statistics import GroupNorm, group_affine, group_norm, group_statistics

__all__ = [
    "BlockParameters",
    "GroupNorm",
    "Section",
    "blocks",
    "bottleneck",
    "depthwise",
    "filter_bank",
    "generated_parameters",
    "group_affine",
    "group_norm",
    "group_statistics",
    "in_conv",
    "kept_for_backward",
    "log_power",
    "mask_tail",
    "masked_latent",
    "overlap_add",
    "pointwise",
    "stage_loss",
]
