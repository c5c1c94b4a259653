"""What this machine can do at best, and what a scenario needs of it: the floor under every figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qwen2_audio.bench.scenarios import Scenario
from qwen2_audio.checkpoints.quantize import Int8Weight, to_int8
from qwen2_audio.config import Qwen2AudioConfig, audio_tokens, encoder_frames, mel_frames
from qwen2_audio.runtime import Runtime

_PROMPT_TOKENS = 30  # of text, around the audio
_ROWS, _SIDE = 512, 2048
_ROWS_ON_GPU, _SIDE_ON_GPU = 8192, 8192  # smaller products end before they are launched
_BYTES, _BYTES_ON_GPU = 512 << 20, 4 << 30
_BUDGET = 1.0  # seconds for each measurement


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured on the spot: bytes a second that are read, operations a second in products of the encoder's kind."""

    read: float
    products: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def measure_machine(runtime: Runtime) -> Machine:
    """The best of several tries, as others may be using the machine."""
    dtype = torch.float32 if runtime.device.type == "mps" else torch.float64  # the Mac's has no float64
    size = _BYTES_ON_GPU if runtime.device.type == "cuda" else _BYTES
    data = torch.ones(size // dtype.itemsize, dtype=dtype, device=runtime.device)
    read = size / _best(lambda: data.sum(), runtime.device)
    rows, side = (_ROWS, _SIDE) if runtime.device.type == "cpu" else (_ROWS_ON_GPU, _SIDE_ON_GPU)
    x = torch.randn(rows, side, device=runtime.device, dtype=runtime.dtype)
    weight = torch.randn(side, side, device=runtime.device, dtype=runtime.dtype)
    product: Callable[[], Any] = lambda: x @ weight.T  # noqa: E731
    if runtime.int8_on_cpu:
        packed = Int8Weight([to_int8(weight)], [None])
        product = lambda: packed(x)  # noqa: E731
    return Machine(read, 2 * rows * side * side / _best(product, runtime.device))


def _best(call: Callable[[], Any], device: torch.device) -> float:
    least, until = float("inf"), time.perf_counter() + _BUDGET
    with torch.inference_mode():
        while time.perf_counter() < until:
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elif device.type == "mps":
                torch.mps.synchronize()
            least = min(least, time.perf_counter() - started)
    return least


@dataclass(frozen=True, slots=True)
class Needs:
    """Multiplications and additions, and bytes of weights, that nobody can do without."""

    operations: float
    weight_bytes: float

    def seconds(self, machine: Machine) -> float:
        """Products and reading overlap at best."""
        return max(self.operations / machine.products, self.weight_bytes / machine.read)


def floors(config: Qwen2AudioConfig, runtime: Runtime, machine: Machine, scenario: Scenario) -> tuple[float, float]:
    """Seconds to the first token of all streams together, and of a later step of all.

    Counted are the products of the linear layers and of the attention to what was heard; not the small operators.
    """
    size = runtime.weight_bytes
    streams = len(scenario.seconds)
    encoder_size = size if runtime.int8_on_cpu else runtime.dtype.itemsize
    first = encoder(config, scenario.seconds, encoder_size).seconds(machine)
    prompts = [_PROMPT_TOKENS + audio_tokens(_frames(seconds)) for seconds in scenario.seconds]
    first += language(config, prompts, heads=streams, size=size).seconds(machine)
    return first, language(config, [1] * streams, heads=streams, size=size).seconds(machine)


def encoder(config: Qwen2AudioConfig, clips: Sequence[float], size: float) -> Needs:
    """Of the audio encoder for clips of so many seconds."""
    audio = config.audio
    layer = 4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim
    operations = 0.0
    for positions in (encoder_frames(_frames(seconds)) for seconds in clips):
        convolutions = 3 * audio.d_model * (2 * audio.num_mel_bins + audio.d_model)
        attention = audio.encoder_layers * 2 * positions * audio.d_model
        operations += 2 * positions * (audio.encoder_layers * layer + convolutions + attention)
    return Needs(operations, audio.encoder_layers * layer * size)


def language(config: Qwen2AudioConfig, lengths: Sequence[int], *, heads: int, size: float) -> Needs:
    """Of the language model for sequences of so many new tokens, with the logits of `heads` tokens."""
    text = config.text
    kv = text.num_key_value_heads * text.head_dim
    layer = 2 * text.hidden_size**2 + 2 * text.hidden_size * kv + 3 * text.hidden_size * text.intermediate_size
    head = text.hidden_size * text.vocab_size
    operations = 2.0 * head * heads
    for length in lengths:
        attention = text.num_hidden_layers * length * text.hidden_size  # half of the square, twice
        operations += 2 * length * (text.num_hidden_layers * layer + attention)
    return Needs(operations, (text.num_hidden_layers * layer + head) * size)


def _frames(seconds: float) -> int:
    return mel_frames(int(seconds * 16_000))
