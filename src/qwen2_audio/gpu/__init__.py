"""Kernels for NVIDIA GPUs, in Triton. They know tensors and nothing of the model; without Triton nobody imports them."""
