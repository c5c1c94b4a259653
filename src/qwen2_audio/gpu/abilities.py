"""What the GPU and the libraries at hand can do, and launching on the right one. Triton is imported where it is tried out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

LOG = logging.getLogger("qwen2_audio.kernels")
_HALF = (torch.bfloat16, torch.float16)
_Launches = TypeVar("_Launches", bound=Callable[..., Any])


def reason(error: Exception) -> str:
    """An error in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@functools.cache
def compiles(device: torch.device) -> bool:
    """Whether kernels can be compiled for a GPU: that takes Triton, which comes with torch on Linux, a C compiler and Python's
    headers. Tried out once; where it fails the log says why."""
    if find_spec("triton") is None:
        LOG.warning("the plain layers go on alone, more slowly: the package triton is not installed")
        return False
    try:
        from qwen2_audio.gpu.elementwise import gated

        gated(*torch.ones(2, 1, 16, dtype=torch.float16, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler complains about
        LOG.warning("the plain layers go on alone, more slowly: Triton cannot compile here (%s)", reason(error))
        return False
    return True


def runs_kernels(x: Tensor) -> bool:
    """Whether the kernels of one pass over memory are for x: on a GPU, in half precision."""
    return x.is_cuda and x.dtype in _HALF and compiles(x.device)


def on_its_gpu(launches: _Launches) -> _Launches:
    """Lets a function launch kernels on the GPU of its first argument, a tensor or several: Triton takes the current GPU, which
    may be another."""

    @functools.wraps(launches)
    def guarded(first: Tensor | tuple[Tensor, ...], *args: Any, **options: Any) -> Any:
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first[0]):
            return launches(first, *args, **options)

    return cast("_Launches", guarded)


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
