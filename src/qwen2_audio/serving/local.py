"""`LocalBackend`: answers of this machine's own engine, which runs in a supervised process.

The front renders prompts and computes features in a small pool; the engine's process does everything that costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import UsageError, advice
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import Step
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, TextPart
from qwen2_audio.serving.backend import (
    BarePrompt,
    Delta,
    EngineLostError,
    Job,
    ModelCard,
    OverloadedError,
    TokenLogprob,
    UnknownModelError,
)
from qwen2_audio.serving.engine_link import Entry
from qwen2_audio.serving.engine_messages import EnginePlan, EngineRequest
from qwen2_audio.serving.engine_process import run_engine
from qwen2_audio.serving.supervisor import Answer, Pauses, SupervisedEngine
from qwen2_audio.serving.waiting_room import Place, WaitingRoom

if TYPE_CHECKING:
    from qwen2_audio.processing.processor import Processor, Prompt

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """What is served and how much may wait.

    Attributes:
        model: as in `load`.
        name: what requests call it; by default the last part of `model`.
        adapters: (name, path) of adapters or results of training runs, each selected by its name.
        device, dtype, quantize, offline: as in `load`.
        cache_tokens, max_running: see `EnginePlan`.
        engine_timeout: seconds without a sign of life, while answers are wanted, after which the engine is started anew.
        max_queue: answers that may wait for their first token; more are refused.
        max_queue_mib: features of those recordings in memory.
        queue_timeout: seconds after which an answer that has not begun is given up.
        drain_timeout: seconds that answers in progress have left when the backend is closed.
        renderers: threads that render prompts and compute features.
    """

    model: str = "mini"
    name: str | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    offline: bool = False
    cache_tokens: int = 32768
    max_running: int = 32
    engine_timeout: float = 300.0
    max_queue: int = 256
    max_queue_mib: int = 512
    queue_timeout: float = 120.0
    drain_timeout: float = 5.0
    renderers: int = 2
    pauses: Pauses = field(default_factory=Pauses)

    def __post_init__(self) -> None:
        names = [name for name, _ in self.adapters]
        twice = next((name for name in names if names.count(name) > 1 or name == self.served_name), None)
        if twice is not None:
            raise UsageError(f"two models would be called {twice!r}; give each adapter a name of its own")

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.name or Path(self.model.removeprefix("hf:").removeprefix("modelscope:")).name or self.model


def parse_adapter(text: str) -> tuple[str, str]:
    """NAME=FOLDER, as the command line has it.

    Raises:
        UsageError: it is something else.
    """
    name, equals, path = text.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise UsageError(f"an adapter is given as NAME=FOLDER, got {text!r}")
    return name.strip(), str(Path(path.strip()).expanduser())


class LocalBackend:
    """A `Backend` over an engine in a process of this machine."""

    def __init__(self, config: LocalConfig, entry: Entry = run_engine) -> None:
        self._config = config
        self._entry = entry
        self._models: tuple[ModelCard, ...] = ()
        self._pool: ThreadPoolExecutor | None = None
        self._engine: SupervisedEngine | None = None
        self._processor: Processor
        self._end_ids: frozenset[int] = frozenset()
        self._closing = False
        self._room = WaitingRoom(config.max_queue, config.max_queue_mib * MIB)

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """The model and its adapters; known from `start` on."""
        return self._models

    @property
    def ready(self) -> bool:
        return self._engine is not None and self._engine.ready and not self._closing

    @property
    def engine_pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._engine.pid if self._engine is not None else None

    def gauges(self) -> dict[str, float]:
        progress = self._engine.progress if self._engine is not None else None
        running = progress.running if progress is not None else 0
        return {
            "requests_running": running,
            "requests_waiting": max(self._room.jobs - running, 0),
            "cache_usage": progress.cache_usage if progress is not None else 0.0,
            "engine_restarts": self._engine.restarts if self._engine is not None else 0,
        }

    async def start(self) -> None:
        """Find the checkpoint, fetching it if need be, and start the engine.

        Raises:
            CheckpointError, UsageError: it cannot be found, fetched, read or run.
        """
        if self._pool is not None:
            raise UsageError("this backend was started already; make a new one")
        self._pool = ThreadPoolExecutor(self._config.renderers, "renderer", initializer=_use_one_thread)
        try:
            loop = asyncio.get_running_loop()
            folder = await loop.run_in_executor(self._pool, self._read_checkpoint)
            config = self._config
            plan = EnginePlan(
                str(folder),
                config.served_name,
                config.adapters,
                config.device,
                config.dtype,
                config.quantize,
                config.cache_tokens,
                config.max_running,
            )
            self._engine = SupervisedEngine(plan, self._entry, self._pool, config.pauses, config.engine_timeout)
            await self._engine.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Take no more jobs, give those in progress some time, then end everything."""
        self._closing = True
        if self._engine is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.drain_timeout):
                    while self._room.jobs and self._engine.ready:
                        await asyncio.sleep(0.02)
            await self._engine.close()
        if self._pool is not None:  # a download cannot be told to end
            self._pool.shutdown(wait=bool(self._models), cancel_futures=True)

    async def tokenize(self, prompt: Conversation | BarePrompt, model: str) -> tuple[list[int], int]:
        card = self._card(model)
        return (await self._render(prompt)).ids, card.context_length

    async def generate(self, job: Job) -> AsyncIterator[Delta]:
        """See `Backend.generate`. What has come between two calls is one delta."""
        card = self._card(job.model)
        engine = self._running_engine()
        with self._room.enter() as place:
            latest = asyncio.get_running_loop().time() + self._config.queue_timeout
            async with self._beginning(latest):
                answer, prompt_tokens = await self._submit(engine, job, card, place)
            try:
                async with self._beginning(latest):
                    steps = await answer.steps()
                place.begin()
                cached = steps[0].cached_tokens
                while True:
                    finish = steps[-1].finish_reason
                    text, logprobs = "".join(step.text for step in steps), self._logprobs(steps, job.options)
                    yield Delta(text, len(steps), prompt_tokens, finish, logprobs, cached)
                    if finish is not None:
                        return
                    steps = await answer.steps()
            finally:
                engine.drop(answer)

    async def _submit(self, engine: SupervisedEngine, job: Job, card: ModelCard, place: Place) -> tuple[Answer, int]:
        """Hand a job over; returns what will be its answer, and the number of tokens of its prompt."""
        prompt = await self._render(job.prompt)
        mels, frames = tuple(clip.mel.numpy() for clip in prompt.clips), tuple(clip.frames for clip in prompt.clips)
        request = EngineRequest(card.name, prompt.ids, mels, frames, job.options)
        place.weigh(request.nbytes)
        return engine.submit(request), len(prompt.ids)

    def _card(self, name: str) -> ModelCard:
        if not self._models:
            raise EngineLostError("the engine was not started; wait until the server is ready")
        card = next((card for card in self._models if card.name == name), None)
        if card is None:
            names = [card.name for card in self._models]
            raise UnknownModelError(f"there is no model {name!r} here; {advice(name, names, 'served are')}")
        return card

    def _running_engine(self) -> SupervisedEngine:
        if self._engine is None or not self.ready:
            raise EngineLostError("the engine is not running; if it is being started, try again in a few seconds")
        return self._engine

    @contextlib.asynccontextmanager
    async def _beginning(self, latest: float) -> AsyncIterator[None]:
        """What comes before the first token of an answer, to be done by a time of the event loop."""
        try:
            async with asyncio.timeout_at(latest):
                yield
        except TimeoutError:
            limit = self._config.queue_timeout
            raise OverloadedError(
                f"the answer could not begin within {limit:g} s, too much is waiting; try again later",
                self._room.retry_after,
            ) from None

    async def _render(self, prompt: Conversation | BarePrompt) -> Prompt:
        return await asyncio.get_running_loop().run_in_executor(self._pool, render, self._processor, prompt)

    def _read_checkpoint(self) -> Path:
        """What the front must know of the checkpoint; the weights are not touched."""
        from qwen2_audio.api import read_defaults
        from qwen2_audio.checkpoints.hub import find_checkpoint
        from qwen2_audio.checkpoints.load import load_config
        from qwen2_audio.processing.processor import load_processor

        config = self._config
        folder = find_checkpoint(config.model, offline=config.offline)
        self._processor = load_processor(folder, load_config(folder))
        defaults = read_defaults(folder, self._processor)
        self._end_ids = defaults.end_ids
        room = config.cache_tokens // (1 + len(config.adapters))  # each has a cache of its own
        context, window = min(self._processor.context_length, room), defaults.transcription_window
        base = ModelCard(config.served_name, context, window, defaults.options)
        self._models = (base, *(replace(base, name=name, root=base.name) for name, _ in config.adapters))
        return folder

    def _logprobs(self, steps: Sequence[Step], options: GenerationOptions) -> tuple[TokenLogprob, ...]:
        """Of all tokens but the one that ends an answer, which is not part of what it says."""
        if options.logprobs is None:
            return ()
        ends = self._end_ids.union(options.stop_token_ids)
        said = (step for step in steps if step.finish_reason != "stop" or step.token not in ends)
        return tuple(self._logprob(step) for step in said)

    def _logprob(self, step: Step) -> TokenLogprob:
        data = self._processor.tokenizer.bytes_of
        top = tuple((data(token).decode(errors="replace"), data(token), logprob) for token, logprob in step.top)
        own = data(step.token)
        return TokenLogprob(own.decode(errors="replace"), own, step.logprob or 0.0, top)


def render(processor: Processor, prompt: Conversation | BarePrompt) -> Prompt:
    """Ids and features of a prompt. What is over 30 s becomes windows, without a warning: the routes' limits decide."""
    if isinstance(prompt, BarePrompt):
        return processor.prepare_base(
            [window.source for part in prompt.audios for window in _windows(part)], prompt.text
        )
    messages = []
    for message in prompt.messages:
        parts = [[part] if isinstance(part, TextPart) else _windows(part) for part in message.parts]
        messages.append(Message(message.role, tuple(itertools.chain.from_iterable(parts))))
    return processor.prepare(Conversation(tuple(messages)))


def _windows(part: AudioPart) -> list[AudioPart]:
    from qwen2_audio.processing.audio import load_part
    from qwen2_audio.processing.windows import cut_windows

    return [AudioPart((window, SAMPLE_RATE)) for window in cut_windows(load_part(part))]


def _use_one_thread() -> None:
    """Clips are small; the cores belong to the engine."""
    import torch

    torch.set_num_threads(1)
