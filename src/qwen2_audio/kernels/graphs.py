"""Decode steps on a GPU as captured graphs: one launch instead of a thousand, attached to a language model that lies there.

A graph is bound to addresses, so it is captured for certain rows of a certain cache, up to a bound of positions, and replayed
while steps go on with those. Once captured it must repeat what the plain layers gave; where it does not, or where capturing
fails, the plain layers go on alone. The plain version is `qwen2_audio.model.language_model.Decoder`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qwen2_audio.model.kv_cache import Cache
from qwen2_audio.model.language_model import LanguageModel, rotary_angles

_LOG = logging.getLogger("qwen2_audio.kernels")
_MOST_ROWS = 64
_LEAST_POSITIONS = 256
_KEPT = 32
"""Graphs; the one that was not used for longest makes room."""
_USES_BEFORE = 1
"""Steps of the same kind that run plainly before they are captured: answers of a token or two are not worth it."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Between the logits of a graph and of the plain layers, whose products and attention add up in other orders."""

Key = tuple[int, ...]


class Replay(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], None]], Replay]
"""Runs a function so that all it does to the device can be repeated."""


@dataclass(slots=True)
class _Graph:
    replay: Callable[[], None]
    embeddings: Tensor
    past: Tensor
    logits: Tensor


class Graphs:
    """Runs the layers and the head for one new token of each sequence; see `FastSteps`."""

    def __init__(self, model: LanguageModel, capture: Capture, device: torch.device) -> None:
        """Args: device: of the model and of the work that fits."""
        self._model, self._capture, self._device = model, capture, device
        self._norm = model.model.norm.weight.detach()  # held, so that nothing else comes to lie at its address
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._seen: OrderedDict[Key, int] = OrderedDict()
        self.works = True
        self.replayed = 0

    def __deepcopy__(self, _: object) -> None:
        """The copy of a model has none: its weights lie elsewhere."""

    def fits(self, x: Tensor, lengths: Sequence[int]) -> bool:
        """Whether this is a step of a few sequences on the device."""
        return (
            self.works
            and x.device.type == self._device.type
            and len(lengths) <= _MOST_ROWS
            and all(count == 1 for count in lengths)
            and not torch.is_grad_enabled()
            and self._model.model.norm.weight.data_ptr() == self._norm.data_ptr()  # not moved
        )

    def __call__(self, embeddings: Tensor, cache: Cache, logits_at: Tensor | None) -> Tensor:
        """Logits [n or rows, vocab_size] of embeddings [rows, hidden_size]; see `LanguageModel.forward`."""
        new = [1] * len(embeddings)
        cache.reserve(new)
        parts = [cache.rows_of_layer(layer) for layer in range(self._model.model.config.num_hidden_layers)]
        if len(parts[0]) > 1:
            return self._plain(embeddings, cache, logits_at)
        layers = [part[0] for part in parts]
        positions = _bound(max(cache.lengths) + 1, layers[0][0].shape[2])
        key = (positions, *layers[0][0].shape, *(tensor.data_ptr() for layer in layers for tensor in layer))
        graph = self._graphs.get(key)
        if graph is None:
            past = torch.tensor(cache.lengths, device=embeddings.device)
            logits = self._plain(embeddings, cache, None)
            self._seen[key] = self._seen.pop(key, 0) + 1
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
            if self._seen[key] > _USES_BEFORE:
                self._add(key, layers, positions, embeddings, past, logits)
        else:
            self._graphs.move_to_end(key)
            graph.embeddings.copy_(embeddings)
            graph.past.copy_(torch.tensor(cache.lengths))
            graph.replay()
            self.replayed += 1
            cache.advance(new)
            logits = graph.logits.clone()  # the next step overwrites it
        return logits if logits_at is None else logits[logits_at]

    def _plain(self, embeddings: Tensor, cache: Cache, logits_at: Tensor | None) -> Tensor:
        hidden = self._model.model(embeddings, [1] * len(embeddings), cache)
        return self._model.lm_head(hidden if logits_at is None else hidden[logits_at])

    def _add(
        self,
        key: Key,
        layers: list[tuple[Tensor, Tensor]],
        positions: int,
        embeddings: Tensor,
        past: Tensor,
        expected: Tensor,
    ) -> None:
        """Capture a step that has just been made plainly, and see whether it gives the same."""
        rows = _FixedRows(layers, past, positions)
        graph = _Graph(lambda: None, embeddings.clone(), past, torch.empty_like(expected))

        def run() -> None:
            graph.logits.copy_(self._step(graph.embeddings, rows))

        try:
            graph.replay = self._capture(run).replay
            graph.replay()
        except RuntimeError as error:
            return self._give_up(str(error))
        difference = float((graph.logits - expected).abs().max())
        if not difference <= _TOLERANCE[expected.dtype] * max(1.0, float(expected.abs().max()) / 16):
            return self._give_up(f"a captured step differs from the plain one by {difference:.3g}")
        self._graphs[key] = graph
        if len(self._graphs) > _KEPT:
            self._graphs.popitem(last=False)

    def _give_up(self, reason: str) -> None:
        self.works = False
        self._graphs.clear()
        _LOG.warning("steps are not captured as graphs, and slower for it: %s", reason)

    def _step(self, x: Tensor, rows: _FixedRows) -> Tensor:
        decoder = self._model.model
        angles = rotary_angles(decoder.config, rows.past, x.dtype)
        for layer in decoder.layers:
            x = layer(x, angles, [1] * len(x), rows)
        return self._model.lm_head(decoder.norm(x))


class _FixedRows:
    """Rows of a cache whose lengths lie on the device, for a step in which nothing may depend on the host."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], past: Tensor, positions: int) -> None:
        """
        Args:
            layers: keys and values [rows, kv_heads, capacity, head_dim].
            past: int64 [rows], positions that each row holds; changed from step to step.
            positions: no row will hold more with its new one.
        """
        self.past = past
        self._layers = [(keys[:, :, :positions], values[:, :, :positions]) for keys, values in layers]
        self._rows = torch.arange(len(past), device=past.device)
        self._all = torch.arange(positions, device=past.device)

    @property
    def lengths(self) -> Sequence[int]:
        raise NotImplementedError  # they are on the device

    def reserve(self, new: Sequence[int]) -> None:
        """There is room already."""

    def rows_of_layer(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        return [self._layers[layer]]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, new: Sequence[int]) -> Tensor:
        """See `KVCache.attend`; `new` is one for each row."""
        keys, values = self._layers[layer]
        keys[self._rows, :, self.past], values[self._rows, :, self.past] = key, value
        mask = (self._all <= self.past[:, None])[:, None, None]
        grouped = query.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(query[:, :, None], keys, values, mask, enable_gqa=grouped)[:, :, 0]

    def advance(self, new: Sequence[int]) -> None:
        """The caller's cache keeps count."""


def _bound(length: int, capacity: int) -> int:
    bound = _LEAST_POSITIONS
    while bound < length:
        bound *= 2
    return min(bound, capacity)


def attach_graphs(model: LanguageModel) -> None:
    """Let decode steps on a GPU be captured; elsewhere this does nothing."""
    device = model.model.norm.weight.device
    if device.type != "cuda":
        return
    pool = torch.cuda.graph_pool_handle()  # one for all: what a graph gives is copied before the next one runs

    def capture(run: Callable[[], None]) -> Replay:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            run()  # what libraries set up at their first call must not be captured
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
        return graph

    model.steps = Graphs(model, capture, device)
