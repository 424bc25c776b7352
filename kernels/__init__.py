"""The Triton kernels, installed as ``metatasnet_fast.kernels``. Each operation has a file of its own.

A file holds kernels and their launchers. Autograd and dispatch are in ``metatasnet_fast.ops``.
"""
