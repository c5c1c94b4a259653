"""What the GPU and the libraries at hand can do. This imports no Triton."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


@functools.cache
def has_triton() -> bool:
    """Whether kernels can be compiled: Triton comes with torch on Linux."""
    return find_spec("triton") is not None


def runs_kernels(x: Tensor) -> bool:
    """Whether the kernels of one pass over memory are for x: on a GPU, in half precision."""
    return x.is_cuda and x.dtype in _HALF and has_triton()


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def attends_packed(x: Tensor) -> bool:
    """Whether packed sequences are attended to in one call, without asking the host for their lengths: x [tokens, ...,
    head_dim] in half precision on Ampere and later, for which FlashAttention is."""
    return x.is_cuda and x.dtype in _HALF and x.shape[-1] % 8 == 0 and _capability(x.device) >= (8, 0)


def starts_early() -> bool:
    """Whether a kernel can be made ready while the one before it ends (programmatic dependent launch: Hopper and later)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def launch(early: bool) -> dict[str, bool]:
    """How a kernel that waits by itself is launched."""
    return {"launch_pdl": True} if early else {}
