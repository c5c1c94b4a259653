"""Where and how the model runs: device and dtype, chosen once and returned as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A device and the dtype of the weights on it."""

    device: torch.device
    dtype: torch.dtype


def choose_runtime(device: str = "auto", dtype: str = "auto") -> Runtime:
    """Pick the best device there is, and a dtype that is fast on it.

    `auto` means: the first CUDA device, else Apple's MPS, else the CPU; bfloat16 on a CUDA device that has it (float16 on
    older ones and on MPS), float32 on a CPU (most CPUs multiply bfloat16 many times more slowly).

    Raises:
        UsageError: an unknown dtype, or a device that is not there.
    """
    import torch

    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).cpu()  # not `meta`, which holds no numbers
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"cannot use the device {device!r} ({reason:.120}); use auto, cpu, cuda, cuda:N or mps"
        ) from error
    if dtype != "auto":
        return Runtime(chosen, getattr(torch, dtype))
    if chosen.type == "cuda":
        return Runtime(chosen, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    return Runtime(chosen, torch.float16 if chosen.type == "mps" else torch.float32)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; a CPU without such instructions is hundreds of times slower at it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
