"""Run one fused operation without the network: 1x1 convolution, PReLU and group norm of (n, I, frames, channels).

On a CUDA device the Triton kernels run, elsewhere plain PyTorch. Both are differentiable, and ``torch.compile`` accepts
them.

    python examples/use_one_kernel.py
"""

import torch

from metatasnet_fast.ops import GroupNorm, pointwise

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
x = torch.randn(2, 4, 1000, 64, device=device)  # items, instruments, frames, channels
expand = torch.randn(4, 128, 64, device=device, requires_grad=True)  # a matrix for each instrument
reduce = torch.randn(4, 64, 128, device=device, requires_grad=True)
slope = torch.full((1,), 0.25, device=device)
gain, offset = torch.ones(4, 128, device=device), torch.zeros(4, 128, device=device)

hidden, statistics = pointwise(x, expand, next_slope=slope)
y, _ = pointwise(hidden, reduce, residual=x, slope=slope, norm=GroupNorm(statistics, gain, offset))
y.square().mean().backward()
print(tuple(y.shape), f"largest gradient {float(expand.grad.abs().max()):.3g}")
