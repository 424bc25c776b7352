"""Bytes of local memory a thread that kernels are known to use, by kernel, precision and GPU.

Compiled with Triton 3.7.1. But for the spectrogram's power on sm_120 none of them is short of registers: each has 40 to 168 of
255 in use; the round numbers suggest that ptxas puts some aside to let more programs reside. The product in two bytes for sm_90
puts up to 14 aside while it starts with the interpolated share; its loop has all it needs. What kernels without enough
registers spilled was 32 bytes or more wherever it was seen; such a kernel is not listed, and fails.

Older versions, which GPU builds of torch 2.8 to 2.11 bring, allocate registers differently: with Triton 3.4, 77 of 588 cases
used more than is listed, with 3.6 44, 64 bytes at most. With them a kernel fails only beyond that; the product's start for
sm_90 puts 28 registers aside with 3.6.
"""

from __future__ import annotations

import triton

__all__ = ["known"]

KNOWN = {
    ("cosine_fwd_kernel", "float16", 90): 8,
    ("fold_kernel", "bfloat16", 120): 8,
    ("fold_kernel", "float32", 86): 8,
    ("fold_kernel", "float32", 89): 8,
    ("fold_kernel", "tf32", 86): 8,
    ("fold_kernel", "tf32", 89): 8,
    ("mask_tail_sums_kernel", "float16", 80): 8,
    ("overlap_add_kernel", "bfloat16", 100): 8,
    ("overlap_add_kernel", "float16", 100): 8,
    ("overlap_add_kernel", "tf32", 100): 16,
    ("pointwise_dgrad_kernel", "bfloat16", 100): 8,
    ("pointwise_dgrad_kernel", "float32", 80): 16,
    ("pointwise_dgrad_kernel", "float32", 86): 16,
    ("pointwise_dgrad_kernel", "float32", 89): 16,
    ("pointwise_dgrad_kernel", "float32", 90): 8,
    ("pointwise_dgrad_kernel", "tf32", 80): 8,
    ("pointwise_fwd_kernel", "tf32", 100): 24,
    ("pointwise_norm_kernel", "float32", 80): 8,
    ("pointwise_norm_kernel", "float32", 90): 16,
    ("pointwise_norm_kernel", "float32", 100): 8,
    ("pointwise_norm_kernel", "tf32", 80): 8,
    ("pointwise_norm_kernel", "tf32", 90): 16,
    ("pointwise_norm_kernel", "tf32", 100): 8,
    ("pointwise_wgrad_kernel", "bfloat16", 100): 8,
    ("pointwise_wgrad_kernel", "float16", 100): 8,
    ("power_kernel", "bfloat16", 120): 24,
    ("product_kernel", "bfloat16", 90): 56,
    ("product_kernel", "float16", 90): 56,
    ("product_kernel", "bfloat16", 100): 8,
    ("product_kernel", "float16", 100): 8,
    ("product_kernel", "float32", 80): 16,
    ("product_kernel", "float32", 86): 24,
    ("product_kernel", "float32", 89): 24,
    ("product_kernel", "float32", 90): 8,
    ("product_kernel", "float32", 120): 16,
    ("product_kernel", "tf32", 86): 8,
    ("product_kernel", "tf32", 89): 8,
    ("product_kernel", "tf32", 100): 24,
    ("sum_kernel", "bfloat16", 100): 16,
    ("sum_kernel", "float16", 100): 16,
    ("sum_kernel", "float32", 100): 16,
    ("sum_kernel", "tf32", 100): 16,
    ("weight_gradient_kernel", "float32", 100): 8,
    ("weight_gradient_kernel", "tf32", 100): 24,
}


OLDER = 64 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) else 0


def known(kernel: str, precision: str, capability: int) -> int:
    if OLDER and (kernel, capability) == ("product_kernel", 90):
        return 112
    return max(OLDER, KNOWN.get((kernel, precision, capability), 0))
