"""Where and how the model runs: device and dtype, chosen once and returned as a value."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("none", "int8", "int4", "fp8", "auto")
_LEAST_BFLOAT16, _LEAST_FP8 = (8, 0), (8, 9)  # Ampere and Ada: the first GPUs that multiply them


@dataclass(frozen=True, slots=True)
class Runtime:
    """A device and the dtype of the weights on it.

    Attributes:
        quantize: "none", or how linear layers' weights are rounded further: "int8", "int4", "fp8".
    """

    device: torch.device
    dtype: torch.dtype
    quantize: str = "none"

    @property
    def weight_bytes(self) -> float:
        """Of one weight in linear layers."""
        return {"int8": 1.0, "fp8": 1.0, "int4": 0.5 + 4 / 64}.get(self.quantize, self.dtype.itemsize)

    @property
    def int8_on_cpu(self) -> bool:
        """Whether all linear layers are in int8, by our own layers; on a GPU only the language model's are rounded."""
        return self.quantize == "int8" and self.device.type == "cpu"


def choose_runtime(device: str = "auto", dtype: str = "auto", quantize: str = "none") -> Runtime:
    """Pick the best device there is, and a dtype that is fast on it.

    `auto` means: the first CUDA device, else Apple's MPS, else the CPU; bfloat16 on a CUDA device that has it (float16 on
    older ones and on MPS), float32 on a CPU (most CPUs multiply bfloat16 many times more slowly).

    `quantize="int8"` is for CPUs, in float32, and CUDA, in bfloat16; "int4" and "fp8" are for CUDA; "auto" takes int8 where the
    CPU has instructions for it, unless a dtype was asked for.

    Raises:
        UsageError: an unknown dtype or way to quantise, a device that is not there, or rounding where it does not run.
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
    if quantize in ("int8", "int4", "fp8"):
        return _rounded_on_cuda(chosen, dtype, quantize) if chosen.type == "cuda" else _int8_on(chosen, dtype, quantize)
    if quantize == "auto" and dtype == "auto" and has_int8_products(chosen):
        return _int8_on(chosen, dtype)
    if dtype != "auto":
        return Runtime(chosen, getattr(torch, dtype))
    if chosen.type == "cuda":
        return Runtime(chosen, torch.bfloat16 if has_native_bfloat16(chosen) else torch.float16)
    return Runtime(chosen, torch.float16 if chosen.type == "mps" else torch.float32)


def _rounded_on_cuda(device: torch.device, dtype: str, quantize: str) -> Runtime:
    import torch

    if dtype not in ("auto", "bfloat16"):
        raise UsageError(f"quantize {quantize} on a GPU computes in bfloat16, not in {dtype}; leave the dtype out")
    capability = torch.cuda.get_device_capability(device)
    if capability < (_LEAST_FP8 if quantize == "fp8" else _LEAST_BFLOAT16):
        raise UsageError(f"quantize {quantize} needs a newer GPU than {str(device)!r}; use quantize none")
    package = "triton>=3.6" if quantize == "int4" else "torchao>=0.18"
    name = package.partition(">")[0]
    if find_spec(name) is None:
        raise UsageError(f"quantize {quantize} on a GPU needs the package {name}: pip install '{package}'")
    return Runtime(device, torch.bfloat16, quantize)


def _int8_on(device: torch.device, dtype: str, quantize: str = "int8") -> Runtime:
    import torch

    if quantize != "int8":
        raise UsageError(
            f"quantize {quantize} runs on NVIDIA's GPUs only, and the device is {str(device)!r}; use int8 or none"
        )
    if device.type != "cpu":
        raise UsageError(
            f"quantize int8 runs on CPUs and NVIDIA's GPUs, and the device is {str(device)!r}; use device cpu, or none"
        )
    if dtype not in ("auto", "float32"):
        raise UsageError(f"quantize int8 computes in float32, not in {dtype}; leave the dtype out")
    if not _has_int8_kernels():
        raise UsageError(
            "this build of torch multiplies no int8 on the CPU; leave quantize out, or install another build"
        )
    return Runtime(device, torch.float32, "int8")


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
        return torch.cuda.get_device_capability(device) >= _LEAST_BFLOAT16
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def give_memory_back() -> None:
    """Hand to the system what was freed: the C library of Linux keeps what lies between what is in use. Elsewhere nothing."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
