"""Who is measured: the protocol, and this package itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen2_audio.api import Assistant
from qwen2_audio.bench.figures import Times
from qwen2_audio.bench.scenarios import INSTRUCTION, Scenario
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.generation.batch import ContinuousBatch
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import Step
from qwen2_audio.processing.conversation import Conversation

Wave = NDArray[np.float32]


class Side(Protocol):
    """Runs a scenario from samples to text, features and prompts included."""

    name: str

    def run(self, scenario: Scenario, fresh: int = 0) -> Times:
        """Time one run.

        Args:
            fresh: the streams' clips are `noise` of this number, so that runs with different ones have no clip in common.
        """


def noise(seconds: float, seed: int = 0, fresh: int = 0) -> Wave:
    """A clip, float32 [samples] at 16 kHz: what is in it takes no part in how long it takes."""
    rng = np.random.default_rng([seed, fresh])
    return (rng.standard_normal(int(seconds * SAMPLE_RATE)) * 0.05).astype(np.float32)


def question(turn: int) -> str:
    """The text of a turn or of a further question; no two are alike."""
    return INSTRUCTION if turn == 0 else f"{INSTRUCTION} ({turn})"


class Ours:
    """This package."""

    name = "ours"

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        engine = assistant.engine
        self._engine = Engine(engine.model, engine.tokenizer, frozenset())  # no token ends an answer

    def run(self, scenario: Scenario, fresh: int = 0) -> Times:
        """See `Side`."""
        match scenario.kind:
            case "turns":
                return self._turns(scenario, fresh)
            case "shared":
                return self._shared(scenario, fresh)
        waves = [noise(seconds, i, fresh) for i, seconds in enumerate(scenario.seconds)]
        started = time.perf_counter()
        requests = [
            self._request(Conversation().user((wave, SAMPLE_RATE), INSTRUCTION), scenario.tokens) for wave in waves
        ]
        steps = self._engine.run(requests) if scenario.kind == "batch" else _crowd(self._engine, requests)
        return timed(steps, started, len(requests))

    @torch.inference_mode()
    def predict(self, wave: Wave, answer: str) -> Tensor:
        """See `Predicts`; by decode steps, as answers come about."""
        prompt = self._assistant.processor.prepare(Conversation().user((wave, SAMPLE_RATE), INSTRUCTION))
        model, said = self._engine.model, self._engine.tokenizer.encode(answer)
        mels = [clip.mel.to(model.device, model.dtype) for clip in prompt.clips]
        audio = model.encode_audio(mels, [clip.frames for clip in prompt.clips])
        cache = model.new_cache(1, len(prompt.ids) + len(said))
        model(torch.tensor(prompt.ids, device=model.device), [len(prompt.ids)], audio, cache)
        steps = [model(torch.tensor([token], device=model.device), [1], None, cache) for token in said]
        return torch.cat(steps).float().log_softmax(-1).cpu()

    def _request(self, conversation: Conversation, tokens: int) -> Request:
        prompt = self._assistant.processor.prepare(conversation)
        return Request(prompt.ids, prompt.clips, GenerationOptions(max_new_tokens=tokens))

    def _shared(self, scenario: Scenario, fresh: int) -> Times:
        """One question after the other; what was computed for the first is at hand for the next."""
        batch = ContinuousBatch(self._engine)
        clip = (noise(scenario.seconds[0], fresh=fresh), SAMPLE_RATE)
        runs = []
        for turn in range(len(scenario.seconds)):
            started = time.perf_counter()
            batch.add(turn, self._request(Conversation().user(clip, question(turn)), scenario.tokens))
            runs.append(timed(_steps(batch), started, 1))
        return joined(runs)

    def _turns(self, scenario: Scenario, fresh: int) -> Times:
        session = self._assistant.session()
        waves = [noise(seconds, fresh=fresh) for seconds in scenario.seconds[:1]]
        runs = []
        for turn in range(len(scenario.seconds)):
            started = time.perf_counter()
            said: list[Any] = [(wave, SAMPLE_RATE) for wave in waves] if turn == 0 else []
            stream = session.stream(
                *said,
                question(turn),
                max_new_tokens=scenario.tokens,
                ignore_eos=True,
                temperature=0,
                repetition_penalty=1,
            )
            first = 0.0
            for _ in stream:
                first = first or time.perf_counter()
            runs.append(times(started, first or time.perf_counter(), scenario.tokens - 1))
        return joined(runs)


class Plain(Ours):
    """This package, its decode steps neither compiled nor captured."""

    name = "plain steps"

    def run(self, scenario: Scenario, fresh: int = 0) -> Times:
        """See `Side`."""
        network = self._engine.model.language_model
        network.steps, steps = None, network.steps
        try:
            return super().run(scenario, fresh)
        finally:
            network.steps = steps


def _crowd(engine: Engine, requests: Sequence[Request]) -> Iterator[Step]:
    batch = ContinuousBatch(engine)
    for index, request in enumerate(requests):
        batch.add(index, request)
    return _steps(batch)


def _steps(batch: ContinuousBatch) -> Iterator[Step]:
    while batch.running or batch.waiting:
        yield from batch.step()


def timed(steps: Iterator[Step], started: float, streams: int) -> Times:
    """Times of a run whose steps come out of `steps`: streams whose turn came early have several tokens when the last of them
    gets its first."""
    heard: set[int] = set()
    first, later = started, 0
    for step in steps:
        if len(heard) < streams:
            heard.add(step.index)
            first = time.perf_counter()
        else:
            later += 1
    return times(started, first, later, streams)


def times(started: float, first: float, later: int, streams: int = 1) -> Times:
    """Times of a run that has ended just now.

    Args:
        first: when the last of the streams had its first token.
        later: how many tokens of all streams came after that.
    """
    ended = time.perf_counter()
    return Times(first - started, (ended - first) * streams / max(later, 1), ended - started)


def joined(runs: Sequence[Times]) -> Times:
    """Several runs, one after the other, as one: first tokens and steps on average, the whole in all."""
    steps = [run.step for run in runs if run.step is not None]
    step = sum(steps) / len(steps) if steps else None
    return Times(sum(run.first for run in runs) / len(runs), step, sum(run.whole for run in runs))
