"""The layers of the audio encoder on a GPU as captured graphs, for one clip at a time.

They are many small operators, which take longer to launch than to run. Several clips keep a GPU busy without. The plain version
is `AudioEncoder.forward`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen2_audio.gpu.abilities import LOG, attends_packed, reason
from qwen2_audio.kernels.capture import TRIALS, Capture, Replay, cuda_capture, difference
from qwen2_audio.model.attention import Packing
from qwen2_audio.model.audio_encoder import AudioEncoder

_SIZES = (*range(64, 512, 64), *range(512, 1537, 128))
"""Positions of the graphs (50 a second); the next larger one is taken."""
_LEAST_USES = 2
"""Of a size, before it is captured: that costs as much as several clips."""


@dataclass(slots=True)
class _Graph:
    """What was captured, and the tensors that it reads and writes."""

    captured: Replay
    x: Tensor
    packing: Packing
    states: Tensor
    trials: int = 0


class EncoderGraphs:
    """See `qwen2_audio.model.audio_encoder.FastLayers`."""

    def __init__(self, encoder: AudioEncoder, capture: Capture, device: torch.device) -> None:
        """Args: device: of the encoder and of the work that fits."""
        self._layers, self._pooled, self._capture, self._device = encoder.layers, encoder.layer_norm, capture, device
        self._norm = encoder.layer_norm.weight.detach()  # held, so that nothing else comes to lie at its address
        self._lock = threading.Lock()  # what was captured reads and writes the same tensors, whoever calls
        self._graphs: dict[int, _Graph] = {}
        self._uses: Counter[int] = Counter()
        self.works = True
        self.replayed = 0

    def __deepcopy__(self, _: object) -> None:
        """The copy of a model has none: its weights lie elsewhere."""

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor | None:
        """See `FastLayers`."""
        if not self._fits(x, lengths):
            return None
        with self._lock:
            return self._states(x, lengths)

    def _states(self, x: Tensor, lengths: Sequence[int]) -> Tensor | None:
        size = next(size for size in _SIZES if size >= len(x))
        self._uses[size] += 1
        if self._uses[size] < _LEAST_USES:
            return None
        graph = self._graphs.get(size) or self._captured(size, x)
        if graph is None:
            return None
        graph.x[: len(x)].copy_(x)
        graph.packing.bounds.copy_(torch.tensor([0, len(x), size], dtype=torch.int32))
        graph.captured.replay()
        states = graph.states[: len(x) // 2].clone()  # the next call overwrites them
        if graph.trials == TRIALS:
            self.replayed += 1
            return states
        graph.states.fill_(torch.nan)  # so that a replay without effect is noticed
        plain = self._run(x, lengths)[: len(states)]
        far = difference(states, plain)
        if far is not None:
            graph.trials += 1
            if not far <= 1:
                self._give_up(f"what was captured is {far:.2g} times as far from the plain layers as it may")
        return plain

    def _fits(self, x: Tensor, lengths: Sequence[int]) -> bool:
        return (
            self.works
            and len(lengths) == 1
            and 2 <= len(x) <= _SIZES[-1]
            and x.device.type == self._device.type
            and (x.device.type == "cpu" or attends_packed(x))  # else attention asks the host, which is not captured
            and x.dtype == self._norm.dtype
            and not torch.is_grad_enabled()
            and self._pooled.weight.data_ptr() == self._norm.data_ptr()  # not moved
        )

    def _run(self, x: Tensor, lengths: Sequence[int] | Packing) -> Tensor:
        """The layers, and every two positions as one."""
        for layer in self._layers:
            x = layer(x, lengths)
        states: Tensor = self._pooled(x[: len(x) // 2 * 2].unflatten(0, (-1, 2)).mean(1))
        return states

    def _captured(self, size: int, x: Tensor) -> _Graph | None:
        with torch.inference_mode(False):  # tensors that are written to in either mode
            x = x.new_zeros(size, x.shape[1])
            packing = Packing(torch.tensor([0, size, size], dtype=torch.int32, device=x.device), size)
            states = x.new_full((size // 2, x.shape[1]), torch.nan)
        try:
            captured = self._capture(lambda: states.copy_(self._run(x, packing)))
        except torch.OutOfMemoryError:  # perhaps there is more another time
            self._graphs.clear()
            return None
        except Exception as error:  # whatever a library complains about
            self._give_up(reason(error))
            return None
        graph = self._graphs[size] = _Graph(captured, x, packing, states)
        return graph

    def _give_up(self, why: str) -> None:
        self.works = False
        self._graphs.clear()
        LOG.warning("the encoder's plain layers go on alone, more slowly: %s", why)


def attach_encoder_graphs(encoder: AudioEncoder) -> None:
    """Let the encoder's layers on a GPU be captured; elsewhere this does nothing."""
    device = encoder.layer_norm.weight.device
    if device.type == "cuda":
        encoder.quick = EncoderGraphs(encoder, cuda_capture(device), device)
