"""Decode steps on a GPU as captured graphs: one launch instead of many, attached to a language model that lies there.

A graph is bound to addresses, so it is captured for certain rows of a certain cache, up to a bound of positions, and replayed
while steps go on with those. Its first replays are on trial: the plain layers make the same step after it, and what they give
and write is what counts. Where the two differ, or capturing fails, the plain layers go on alone. The plain version is
`qwen2_audio.model.language_model.Decoder`.
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
_KEPT = 128
"""Graphs. For another, all make room: one that goes alone may take the workspace of cuBLAS along, which is its stream's and the
others' too."""
_PLAIN_STEPS = 4
"""Of a kind, before it is captured: that costs as much as a few steps, which short answers do not bring in again."""
_TRIALS = 2
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Between the logits of a graph and of the plain layers, whose attention adds up in another order: root mean square of the
difference of a row, of that of its logits."""

Key = tuple[int, ...]


class Replay(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], object]], Replay]
"""Runs a function so that all it does to the device can be repeated."""


@dataclass(slots=True)
class _Graph:
    """What was captured, and the tensors that it reads and writes, which must live as long as it."""

    captured: Replay
    embeddings: Tensor
    rows: _FixedRows
    logits: Tensor
    trials: int = 0

    def replay(self, embeddings: Tensor, past: Sequence[int]) -> None:
        """Make a step; its logits [rows, vocab_size] are in `logits` until the next."""
        self.embeddings.copy_(embeddings)
        self.rows.past.copy_(torch.tensor(past))
        self.captured.replay()  # on the stream in use of the device that it was captured on


class Graphs:
    """Runs the layers and the head for one new token of each sequence; see `FastSteps`."""

    def __init__(self, model: LanguageModel, capture: Capture, device: torch.device) -> None:
        """Args: device: of the model and of the work that fits."""
        self._decoder, self._head = model.model, model.lm_head  # not the model itself: it holds this
        self._capture, self._device = capture, device
        self._norm = model.model.norm.weight.detach()  # held, so that nothing else comes to lie at its address
        self._graphs: dict[Key, _Graph] = {}
        self._seen: OrderedDict[Key, int] = OrderedDict()
        self._logits: dict[int, Tensor] = {}  # of so many rows; what a graph gives is copied before the next one runs
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
            and self._decoder.norm.weight.data_ptr() == self._norm.data_ptr()  # not moved
        )

    def __call__(self, embeddings: Tensor, cache: Cache, logits_at: Tensor | None) -> Tensor:
        """Logits [n or rows, vocab_size] of embeddings [rows, hidden_size]; see `LanguageModel.forward`."""
        new = [1] * len(embeddings)
        cache.reserve(new)
        parts = [cache.rows_of_layer(layer) for layer in range(len(self._decoder.layers))]
        if len(parts[0]) > 1:
            return self._plain(embeddings, cache, logits_at)
        graph = self._graph([part[0] for part in parts], embeddings, cache.lengths)
        if graph is None:
            return self._plain(embeddings, cache, logits_at)
        graph.replay(embeddings, cache.lengths)
        if graph.trials < _TRIALS:
            return self._tried(graph, embeddings, cache, logits_at)
        self.replayed += 1
        cache.advance(new)
        return graph.logits.clone() if logits_at is None else graph.logits[logits_at]  # the next step overwrites them

    def _plain(self, embeddings: Tensor, cache: Cache, logits_at: Tensor | None) -> Tensor:
        hidden = self._decoder(embeddings, [1] * len(embeddings), cache)
        logits: Tensor = self._head(hidden if logits_at is None else hidden[logits_at])
        return logits

    def _tried(self, graph: _Graph, embeddings: Tensor, cache: Cache, logits_at: Tensor | None) -> Tensor:
        """The plain step, which also writes over what the graph wrote."""
        tried = graph.logits.clone()
        graph.logits.fill_(torch.nan)  # so that a replay without effect is noticed
        logits = self._plain(embeddings, cache, None)
        difference = float(((tried - logits).float().norm(dim=-1) / logits.float().norm(dim=-1)).max())
        if bool(logits.isfinite().all()):
            graph.trials += 1
            if not difference <= _TOLERANCE[logits.dtype]:
                self._give_up(
                    f"the logits of a captured step differ from those of the plain one by {difference:.2g} of them"
                )
        return logits if logits_at is None else logits[logits_at]

    def _graph(self, layers: list[tuple[Tensor, Tensor]], embeddings: Tensor, past: Sequence[int]) -> _Graph | None:
        """The graph for such a step; None while there is none."""
        positions = _bound(max(past) + 1, layers[0][0].shape[2])
        key = (positions, *layers[0][0].shape, *(tensor.data_ptr() for layer in layers for tensor in layer))
        if key in self._graphs:
            return self._graphs[key]
        seen = self._seen.pop(key, 0) + 1
        if seen <= _PLAIN_STEPS:
            self._seen[key] = seen
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
            return None
        return self._captured(
            key, _FixedRows(torch.tensor(past, device=embeddings.device), positions), layers, embeddings
        )

    def _captured(
        self, key: Key, rows: _FixedRows, layers: list[tuple[Tensor, Tensor]], embeddings: Tensor
    ) -> _Graph | None:
        whole = _FixedCache(rows, layers)
        if len(self._graphs) >= _KEPT:
            self._graphs.clear()
        try:
            x = embeddings.clone()
            if len(x) not in self._logits:
                self._logits[len(x)] = x.new_empty(len(x), self._head.out_features)
            logits = self._logits[len(x)]
            captured = self._capture(lambda: logits.copy_(self._step(x, whole)))
        except torch.OutOfMemoryError:  # perhaps there is more another time
            self._graphs.clear()
            return None
        except RuntimeError as error:
            self._give_up(str(error))
            return None
        logits.fill_(torch.nan)
        graph = self._graphs[key] = _Graph(captured, x, rows, logits)
        return graph

    def _give_up(self, reason: str) -> None:
        self.works = False
        self._graphs.clear()
        _LOG.warning("steps are not captured as graphs, and slower for it: %s", reason)

    def _step(self, x: Tensor, cache: _FixedCache) -> Tensor:
        angles = rotary_angles(self._decoder.config, cache.rows.past, x.dtype)
        cache.mask = cache.rows.mask()
        for layer in self._decoder.layers:
            x = layer(x, angles, [1] * len(x), cache)
        logits: Tensor = self._head(self._decoder.norm(x))
        return logits


class _FixedRows:
    """How much rows of a cache hold, on the device, where nothing may depend on the host.

    Attributes:
        past: int64 [rows], positions that each row holds; changed from step to step.
    """

    def __init__(self, past: Tensor, positions: int) -> None:
        """Args: positions: no row will hold more with its new one."""
        self.past = past
        self.every = torch.arange(len(past), device=past.device)
        self.all = torch.arange(positions, device=past.device)

    def mask(self) -> Tensor:
        """Which positions a row's new token sees, bool [rows, 1, 1, positions]."""
        return (self.all <= self.past[:, None])[:, None, None]


class _FixedCache:
    """The cache for such a step; nobody holds it, and what it is of, longer than capturing takes."""

    mask: Tensor

    def __init__(self, rows: _FixedRows, layers: list[tuple[Tensor, Tensor]]) -> None:
        """Args: layers: keys and values [rows, kv_heads, capacity, head_dim]."""
        positions = len(rows.all)
        self.rows = rows
        self._layers = [(keys[:, :, :positions], values[:, :, :positions]) for keys, values in layers]

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
        every, past = self.rows.every, self.rows.past
        keys[every, :, past], values[every, :, past] = key, value
        grouped = query.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(query[:, :, None], keys, values, self.mask, enable_gqa=grouped)[:, :, 0]

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
    side = torch.cuda.Stream(device)

    def capture(run: Callable[[], object]) -> Replay:
        current = torch.cuda.current_stream(device)
        with torch.cuda.device(device), torch.cuda.stream(current):  # which is in use again whatever fails
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    run()  # what libraries set up at their first call must not be captured
            finally:
                current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                run()
        return graph

    model.steps = Graphs(model, capture, device)
