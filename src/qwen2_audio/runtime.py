"""Where and how the model runs: device and dtype, chosen once and returned as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("none", "int8", "auto")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A device and the dtype of the weights on it; with `int8`, the linear layers' weights are rounded further."""

    device: torch.device
    dtype: torch.dtype
    int8: bool = False


def choose_runtime(device: str = "auto", dtype: str = "auto", quantize: str = "none") -> Runtime:
    """Pick the best device there is, and a dtype that is fast on it.

    `auto` means: the first CUDA device, else Apple's MPS, else the CPU; bfloat16 on a CUDA device that has it (float16 on
    older ones and on MPS), float32 on a CPU (most CPUs multiply bfloat16 many times more slowly).

    `quantize="int8"` is for CPUs, in float32; `quantize="auto"` takes it where the CPU has instructions for it, unless a dtype
    was asked for.

    Raises:
        UsageError: an unknown dtype or way to quantise, a device that is not there, or int8 where it does not run.
    """
    import torch

    if quantize not in QUANTIZE:
        raise UsageError(f"unknown quantize {quantize!r}; use one of {', '.join(QUANTIZE)}")

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
    if quantize == "int8" or (quantize == "auto" and dtype == "auto" and has_int8_products(chosen)):
        return _int8_on(chosen, dtype)
    if dtype != "auto":
        return Runtime(chosen, getattr(torch, dtype))
    if chosen.type == "cuda":
        return Runtime(chosen, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    return Runtime(chosen, torch.float16 if chosen.type == "mps" else torch.float32)


def _int8_on(device: torch.device, dtype: str) -> Runtime:
    import torch

    if device.type != "cpu":
        raise UsageError(f"quantize int8 runs on CPUs only, and the device is {str(device)!r}; use device cpu, or none")
    if dtype not in ("auto", "float32"):
        raise UsageError(f"quantize int8 computes in float32, not in {dtype}; leave the dtype out")
    if not _has_int8_kernels():
        raise UsageError(
            "this build of torch multiplies no int8 on the CPU; leave quantize out, or install another build"
        )
    return Runtime(device, torch.float32, int8=True)


def _has_int8_kernels() -> bool:
    import torch

    return torch.backends.quantized.engine != "none" and hasattr(torch, "_make_per_channel_quantized_tensor")


def has_int8_products(device: torch.device) -> bool:
    """Whether the device is a CPU with instructions for sums of 8-bit products (VNNI), which make int8 several times faster."""
    import torch

    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_vnni")) and _has_int8_kernels()


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; a CPU without such instructions is hundreds of times slower at it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
