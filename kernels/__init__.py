"""The Triton kernels, one file per operation, installed as ``metatasnet_fast.kernels``.

A file holds kernels and their launchers: no autograd, no dispatch (those are in ``metatasnet_fast.ops``).
"""
