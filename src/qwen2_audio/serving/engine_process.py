"""The engine's process: loads the models, answers what comes over the pipe, and ends when the pipe does.

A process of its own because a crash, an allocation too many or a long step of the model must not take the server with it.
It logs nothing: recordings, texts and tokens go nowhere but back.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.generation.sequence import Step
from qwen2_audio.runtime import give_memory_back
from qwen2_audio.serving.engine_messages import (
    Abort,
    Broken,
    EnginePlan,
    Loaded,
    LoadFailed,
    Order,
    Progress,
    Refused,
    Stop,
    Submit,
)

if TYPE_CHECKING:
    from qwen2_audio.generation.batch import ContinuousBatch
    from qwen2_audio.model.qwen2_audio import Qwen2Audio


_TIDY_SECONDS = 5.0
"""Between two times that freed memory is given back: rows and encodings that come and go leave holes, which add up."""


def run_engine(connection: Connection, plan: EnginePlan) -> None:
    """The whole life of the process. An end of the pipe, which the death of the front process brings about, is its end."""
    for name in (signal.SIGINT, signal.SIGTERM):  # they reach the whole terminal or service; the front says when to end
        signal.signal(name, signal.SIG_IGN)
    try:
        try:
            batches = load_batches(plan)
        except Qwen2AudioError as error:
            connection.send(LoadFailed(error))
            return
        connection.send(Loaded())
        EngineLoop(connection, batches).run()
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        connection.send(Broken(type(error).__name__, "".join(traceback.format_tb(error.__traceback__))))
        sys.exit(1)


def load_batches(plan: EnginePlan) -> dict[str, ContinuousBatch]:
    """A batch for the model and one for each adapter, by name."""
    from qwen2_audio.api import load
    from qwen2_audio.generation.batch import ContinuousBatch
    from qwen2_audio.generation.engine import Engine
    from qwen2_audio.generation.scheduler import Limits

    assistant = load(Path(plan.folder), device=plan.device, dtype=plan.dtype, quantize=plan.quantize)
    engines = {plan.name: assistant.engine}
    for name, path in plan.adapters:
        network = _adapted(assistant.model, plan, path)
        engines[name] = Engine(network, assistant.engine.tokenizer, assistant.engine.end_ids)
    budget = max(min(plan.cache_tokens, assistant.engine.room()) // len(engines), 1)
    limits = Limits(plan.max_running, budget, retained_tokens=budget // 4)
    return {name: ContinuousBatch(engine, limits) for name, engine in engines.items()}


def _adapted(model: Qwen2Audio, plan: EnginePlan, path: str) -> Qwen2Audio:
    """A network with an adapter merged into it, which shares what the adapter does not change with `model`."""
    from qwen2_audio.api import load
    from qwen2_audio.checkpoints.merge import merged_copy
    from qwen2_audio.checkpoints.quantize import is_int8
    from qwen2_audio.checkpoints.quantize_gpu import is_rounded
    from qwen2_audio.kernels.steps import lay_out

    if is_int8(model) or is_rounded(model):  # rounded weights cannot be corrected any more: from the file again
        folder = Path(plan.folder)
        return load(folder, adapter=path, device=plan.device, dtype=plan.dtype, quantize=plan.quantize).model
    network = merged_copy(model, Path(path))
    lay_out(network)
    return network


class EngineLoop:
    """Takes orders and lets the batches step in turn."""

    def __init__(self, connection: Connection, batches: Mapping[str, ContinuousBatch]) -> None:
        self._connection = connection
        self._batches = batches
        self._model_of: dict[int, str] = {}
        """The model of every ticket that is not answered."""
        self._tidied, self._untidy = time.monotonic(), False

    def run(self) -> None:
        """Until told to stop."""
        while self._take_orders():
            for batch in self._batches.values():
                if batch.running or batch.waiting:
                    self._report(batch.step())
            self._untidy = True
            if time.monotonic() - self._tidied > _TIDY_SECONDS:
                self._tidy()

    def _tidy(self) -> None:
        give_memory_back()
        self._tidied, self._untidy = time.monotonic(), False

    def _take_orders(self) -> bool:
        """Follow all orders that have come, waiting for one while there is nothing to do; False: to stop."""
        aborted = False
        while True:
            idle = not self._model_of and not aborted
            left = max(0.0, self._tidied + _TIDY_SECONDS - time.monotonic()) if self._untidy else None
            if not self._connection.poll(left if idle else 0):
                if not idle:
                    break
                self._tidy()
                continue
            order: Order = self._connection.recv()
            if isinstance(order, Stop):
                return False
            if isinstance(order, Submit):
                self._add(order)
            else:
                aborted |= self._abort(order)
        if aborted:
            self._report([])
        return True

    def _add(self, order: Submit) -> None:
        import torch

        from qwen2_audio.generation.request import Request
        from qwen2_audio.processing.mel import Clip

        wanted = order.request
        clips = [Clip(torch.from_numpy(mel), frames) for mel, frames in zip(wanted.mels, wanted.frames, strict=True)]
        try:
            self._batches[wanted.model].add(order.ticket, Request(wanted.ids, clips, wanted.options))
        except Qwen2AudioError as error:
            self._connection.send(Refused(order.ticket, error))
        else:
            self._model_of[order.ticket] = wanted.model

    def _abort(self, order: Abort) -> bool:
        model = self._model_of.pop(order.ticket, None)
        if model is None:  # its last step is on the way to the front
            return False
        self._batches[model].abort(order.ticket)
        return True

    def _report(self, steps: list[Step]) -> None:
        for step in steps:
            if step.finish_reason is not None:
                del self._model_of[step.index]
        batches = self._batches.values()
        running, waiting = sum(batch.running for batch in batches), sum(batch.waiting for batch in batches)
        usage = max(batch.cache_usage for batch in batches)
        self._connection.send(Progress(tuple(steps), running, waiting, usage))
