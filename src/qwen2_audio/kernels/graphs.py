"""Decode steps and prompts on a GPU by kernels of our own, the smaller ones captured as graphs; attached to a language model.

There is a graph for so many rows, or up to so many: where these lie and how much they hold it reads from the device. Each is on
trial at first: the plain layers do the same after it, and what they give and write is what counts. Where the two differ, or
something fails, the plain layers go on alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qwen2_audio.gpu.abilities import LOG, attends_packed, compiles, reason
from qwen2_audio.kernels.capture import TRIALS, Capture, cuda_capture, difference
from qwen2_audio.model.kv_cache import Cache
from qwen2_audio.model.language_model import LanguageModel

if TYPE_CHECKING:
    from qwen2_audio.kernels.step_gpu import Step

_ROWS = (1, 2, 4, 8, 16, 32, 48, 64)
"""Sizes of the graphs of steps; the next larger one is taken."""
_TOKENS = (*range(32, 256, 32), *range(256, 513, 64))
"""Sizes of the graphs of prompts. Longer ones keep a GPU busy without."""
_LEAST_USES = 2
"""Of a size, before a prompt of it is captured: that costs as much as several prompts."""

Kind = tuple[str, int]
"""What is done, and its size: "step" and rows, "prompt" and tokens; "prompts", any, without a graph."""


class _Way(Protocol):
    """A quick way to do what `LanguageModel.forward` does."""

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """Logits, until the next call; the cache is not advanced."""


class Graphs:
    """Runs the layers and the head; see `FastSteps`."""

    def __init__(self, model: LanguageModel, step: Step, capture: Capture, device: torch.device) -> None:
        """
        Args:
            step: of the same model.
            device: of the model and of the work that fits.
        """
        self._decoder, self._head = model.model, model.lm_head  # not the model itself: it holds this
        self._step, self._capture, self._device = step, capture, device
        self._norm = model.model.norm.weight.detach()  # held, so that nothing else comes to lie at its address
        self._lock = threading.Lock()  # what was captured reads and writes the same tensors, whoever calls
        self._ways: dict[Kind, _Way] = {}
        self._uses: Counter[Kind] = Counter()
        self._trials: Counter[Kind] = Counter()
        self.works = True
        self.replayed = 0

    def __deepcopy__(self, _: object) -> None:
        """The copy of a model has none: its weights lie elsewhere."""

    def fits(self, x: Tensor, lengths: Sequence[int], cache: Cache) -> bool:
        """Whether this is a step of a few sequences, or prompts from their start, on the device."""
        return (
            self.works
            and x.device.type == self._device.type
            and x.dtype == self._norm.dtype
            and not torch.is_grad_enabled()
            and self._decoder.norm.weight.data_ptr() == self._norm.data_ptr()  # not moved
            and (_is_step(lengths) or (_asks_nothing(x) and not any(cache.lengths)))
        )

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """See `LanguageModel.forward`."""
        with self._lock:
            return self._run(embeddings, lengths, cache, logits_at)

    def _run(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        cache.reserve(lengths)
        kind = self._kind(lengths, logits_at)
        way = self._ways.get(kind) or self._prepared(kind, embeddings)
        try:
            found = None if way is None else way(embeddings, lengths, cache, logits_at)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler complains about
            self._give_up(reason(error))
            found = None
        if found is None:
            return self._plain(embeddings, lengths, cache, logits_at)
        if self._trials[kind] < TRIALS:
            return self._tried(kind, found, embeddings, lengths, cache, logits_at)
        self.replayed += 1
        cache.advance(lengths)
        return found.clone() if kind[0] != "prompts" else found  # the next call overwrites it

    def _kind(self, lengths: Sequence[int], logits_at: Tensor | None) -> Kind:
        if _is_step(lengths):
            return "step", next(size for size in _ROWS if size >= len(lengths))
        if len(lengths) == 1 and lengths[0] <= _TOKENS[-1] and logits_at is not None and len(logits_at) == 1:
            kind = "prompt", next(size for size in _TOKENS if size >= lengths[0])
            self._uses[kind] += 1
            if self._uses[kind] >= _LEAST_USES:
                return kind
        return "prompts", 0

    def _plain(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        hidden = self._decoder(embeddings, lengths, cache)
        logits: Tensor = self._head(hidden if logits_at is None else hidden[logits_at])
        return logits

    def _tried(
        self,
        kind: Kind,
        found: Tensor,
        embeddings: Tensor,
        lengths: Sequence[int],
        cache: Cache,
        logits_at: Tensor | None,
    ) -> Tensor:
        """The plain way, which also writes over what was written."""
        tried = found.clone()
        found.fill_(torch.nan)  # so that a replay without effect is noticed
        logits = self._plain(embeddings, lengths, cache, logits_at)
        far = difference(tried, logits)
        if far is not None:
            self._trials[kind] += 1
            if not far <= 1:
                self._give_up(
                    f"the logits of a quick {kind[0]} are {far:.2g} times as far from the plain ones as they may"
                )
        return logits

    def _prepared(self, kind: Kind, embeddings: Tensor) -> _Way | None:
        """A new way to do such work; None where there is none."""
        what, size = kind
        if what == "prompts":
            way: _Way = Prompted(self._step)
        else:
            try:
                with torch.inference_mode(False), torch.no_grad():  # tensors that are written to in either mode
                    x = embeddings.new_zeros(size, embeddings.shape[1])
                    captured = CapturedStep if what == "step" else CapturedPrompt
                    way = captured(self._step, self._capture, x, self._decoder.config.vocab_size)
            except torch.OutOfMemoryError:  # perhaps there is more another time
                self._ways.clear()
                return None
            except Exception as error:  # whatever a compiler or a library complains about
                self._give_up(reason(error))
                return None
        self._ways[kind] = way
        return way

    def _give_up(self, why: str) -> None:
        self.works = False
        self._ways.clear()
        LOG.warning("the plain layers go on alone, more slowly: %s", why)


class CapturedStep:
    """One new token of each of up to so many rows."""

    def __init__(self, step: Step, capture: Capture, x: Tensor, vocabulary: int) -> None:
        """Args: x: [rows, hidden_size], zeros."""
        from qwen2_audio.kernels.step_gpu import Rows

        self._x, self._rows = x, Rows(step.layers, len(x), x.device)
        self._logits = x.new_zeros(len(x), vocabulary)
        # nothing that holds this: what the graph reads must live as long as it, and no longer
        x, rows, logits = self._x, self._rows, self._logits

        def run() -> None:
            logits.copy_(step.decode(x, rows))
            rows.advance()

        self._captured = capture(run)  # with no row in it
        logits.fill_(torch.nan)

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """See `_Way`."""
        self._x[: len(embeddings)].copy_(embeddings)
        self._rows.set(cache.parts)
        self._captured.replay()  # on the stream in use of the device that it was captured on
        logits = self._logits[: len(embeddings)]
        return logits if logits_at is None else logits[logits_at]


class CapturedPrompt:
    """A prompt of up to so many tokens, the logits of one of them."""

    def __init__(self, step: Step, capture: Capture, x: Tensor, vocabulary: int) -> None:
        """Args: x: [tokens, hidden_size], zeros."""
        from qwen2_audio.kernels.step_gpu import Prompts, Rows

        self._x, self._rows = x, Rows(step.layers, 1, x.device)
        self._prompts, self._logits = Prompts(len(x), 1, 1, x.device), x.new_zeros(1, vocabulary)
        self._prompts.set([0], torch.zeros(1, dtype=torch.long))
        x, rows, prompts, logits = self._x, self._rows, self._prompts, self._logits
        self._captured = capture(lambda: logits.copy_(step.prefill(x, rows, prompts)))
        logits.fill_(torch.nan)

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """See `_Way`."""
        self._x[: len(embeddings)].copy_(embeddings)
        self._rows.set(cache.parts)
        if logits_at is not None:
            self._prompts.set(lengths, logits_at)
        self._captured.replay()
        return self._logits


class Prompted:
    """Prompts of any number and length, without a graph."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """See `_Way`."""
        from qwen2_audio.kernels.step_gpu import Prompts, Rows

        device = embeddings.device
        wanted = torch.arange(len(embeddings), device=device) if logits_at is None else logits_at
        rows, prompts = (
            Rows(self._step.layers, len(lengths), device),
            Prompts(len(embeddings), len(lengths), len(wanted), device),
        )
        rows.set(cache.parts)
        prompts.set(lengths, wanted)
        return self._step.prefill(embeddings, rows, prompts)


def _asks_nothing(x: Tensor) -> bool:
    """Whether attention to prompts waits for nothing on the host, so that it can be captured; on a CPU nothing is."""
    return x.device.type == "cpu" or attends_packed(x)


def _is_step(lengths: Sequence[int]) -> bool:
    return len(lengths) <= _ROWS[-1] and all(count == 1 for count in lengths)


def attach_graphs(model: LanguageModel) -> None:
    """Let steps and prompts on a GPU run by our kernels; elsewhere this does nothing."""
    device, size = model.model.norm.weight.device, model.model.config.head_dim
    if device.type != "cuda" or size & (size - 1) or size < 16:
        return
    if not compiles(device):
        return
    from qwen2_audio.kernels.step_gpu import Step

    model.steps = Graphs(model, Step(model), cuda_capture(device), device)
