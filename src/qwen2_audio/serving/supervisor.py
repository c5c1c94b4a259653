"""Keeps one engine process running and passes answers on: when it dies, whoever waits is told at once and a new one is started.
One that hangs is killed.

Everything here runs on one event loop; the threads of `EngineLink` only post to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.generation.sequence import Step
from qwen2_audio.serving.backend import EngineLostError
from qwen2_audio.serving.engine_link import EngineLink, Entry
from qwen2_audio.serving.engine_messages import (
    Abort,
    Broken,
    EnginePlan,
    EngineRequest,
    Loaded,
    LoadFailed,
    Progress,
    Refused,
    Report,
    Submit,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long to wait, in seconds, before a dead process is started again: the double each time, up to `longest`; from
    the beginning once one has lived for `steady`."""

    first: float = 0.5
    longest: float = 30.0
    steady: float = 60.0


class Answer:
    """What comes back for one request."""

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket
        self._steps: list[Step] = []
        self._error: Qwen2AudioError | None = None
        self._news = asyncio.Event()

    async def steps(self) -> list[Step]:
        """All steps that have come since the last call, at least one; waits for it.

        Raises:
            Qwen2AudioError: the request was refused, or its engine lost.
        """
        await self._news.wait()
        if self._error is not None:
            raise self._error
        self._news.clear()
        steps, self._steps = self._steps, []
        return steps

    def put(self, step: Step) -> None:
        self._steps.append(step)
        self._news.set()

    def fail(self, error: Qwen2AudioError) -> None:
        self._error = error
        self._news.set()


class SupervisedEngine:
    """An engine that is there as long as it can be.

    Args:
        entry: what the process runs.
        pool: for what blocks; may be shared.
        timeout: seconds without a word of the process, while answers are wanted, after which it counts as hanging.
    """

    def __init__(self, plan: EnginePlan, entry: Entry, pool: Executor, pauses: Pauses, timeout: float) -> None:
        self._plan, self._entry, self._pool, self._pauses, self._timeout = plan, entry, pool, pauses, timeout
        self._heard_at = 0.0
        self._tickets = itertools.count()
        self._answers: dict[int, Answer] = {}
        self._link: EngineLink | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._closing = False
        self.restarts = 0
        self.progress = Progress((), 0, 0, 0.0)
        """The latest; its counts say how full the engine is."""

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self._is_loaded() and not self._closing

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._link.pid if self._link is not None and self._is_loaded() else None

    async def start(self) -> None:
        """Start the process and wait until it has loaded.

        Raises:
            CheckpointError, UsageError: it cannot load its models.
            EngineLostError: it died.
        """
        ended = await self._launch()
        self._supervision = asyncio.create_task(self._supervise(ended), name="engine-supervision")

    def submit(self, request: EngineRequest) -> Answer:
        """Ask for an answer. End it with `drop`.

        Raises:
            EngineLostError: there is no engine at the moment.
        """
        if not self.ready or self._link is None:
            raise EngineLostError("the engine is not running; it is being started, try again in a few seconds")
        answer = Answer(next(self._tickets))
        if not self._answers:
            self._heard_at = asyncio.get_running_loop().time()
        self._answers[answer.ticket] = answer
        self._link.send(Submit(answer.ticket, request))
        return answer

    def drop(self, answer: Answer) -> None:
        """Nobody waits for this answer any more: free what it uses at once. Harmless after its end."""
        if self._answers.pop(answer.ticket, None) is not None and self._link is not None:
            self._link.send(Abort(answer.ticket))

    async def close(self, patience: float = 5.0) -> None:
        """Fail all answers and end the process, by force after `patience` seconds."""
        self._closing = True
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
        self._fail_all(EngineLostError("the engine was told to end before the answer was complete"))
        link, self._link = self._link, None
        if link is not None:
            seconds = patience if self._is_loaded() else 0.0  # one that loads does not listen
            await asyncio.get_running_loop().run_in_executor(self._pool, link.stop, seconds)

    def _is_loaded(self) -> bool:
        return self._loaded is not None and self._loaded.done() and not self._loaded.exception()

    async def _supervise(self, ended: asyncio.Future[int]) -> None:
        loop = asyncio.get_running_loop()
        pause = self._pauses.first
        while True:
            began = loop.time()
            while not ended.done():
                await asyncio.wait([ended], timeout=self._timeout / 4)
                if self._link is not None and self._answers and loop.time() - self._heard_at > self._timeout:
                    logger.error("the engine's process has done nothing for %.0f s; it is killed", self._timeout)
                    self._heard_at = loop.time()
                    self._link.kill()
            code = ended.result()
            if loop.time() - began > self._pauses.steady:
                pause = self._pauses.first
            logger.error("the engine's process ended (exit code %d); it is started again in %.1f s", code, pause)
            while True:
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._pauses.longest)
                self.restarts += 1
                try:
                    ended = await self._launch()
                    break
                except Qwen2AudioError as error:
                    logger.error("the engine's process cannot be started (%s); again in %.1f s", error, pause)
            logger.warning("the engine's process is there again")

    async def _launch(self) -> asyncio.Future[int]:
        """A new process, loaded; returns what will be its exit code."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[int] = loop.create_future()

        def post(call: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                loop.call_soon_threadsafe(call)

        try:
            link = EngineLink(
                self._plan,
                self._entry,
                lambda report: post(lambda: self._take(report, loaded)),
                lambda code: post(lambda: self._lose(code, loaded, ended)),
            )
            starting = loop.run_in_executor(self._pool, link.start)
            await asyncio.shield(starting)
        except (OSError, RuntimeError) as error:  # no memory, or too many processes, threads or files
            raise EngineLostError(f"no process can be started for the engine: {error}") from error
        except asyncio.CancelledError:  # told to close, which ends the process
            await asyncio.wait([starting])
            self._link = link if starting.exception() is None else None
            raise
        self._link, self._loaded = link, loaded
        try:
            await asyncio.shield(loaded)
        except Qwen2AudioError:
            await asyncio.shield(ended)
            raise
        return ended

    def _take(self, report: Report, loaded: asyncio.Future[None]) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if isinstance(report, Progress):
            self.progress = report
            for step in report.steps:
                self._put(step)
        elif isinstance(report, Refused):
            answer = self._answers.pop(report.ticket, None)
            if answer is not None:
                answer.fail(report.error)
        elif isinstance(report, Loaded):
            loaded.set_result(None)
        elif isinstance(report, LoadFailed):
            loaded.set_exception(report.error)
        elif isinstance(report, Broken):
            logger.error("the engine failed with %s\n%s", report.kind, report.trace)

    def _put(self, step: Step) -> None:
        answer = self._answers.get(step.index)
        if answer is None:  # dropped while the step was on its way
            return
        if step.finish_reason is not None:
            del self._answers[step.index]
        answer.put(step)

    def _lose(self, code: int, loaded: asyncio.Future[None], ended: asyncio.Future[int]) -> None:
        died = EngineLostError(f"the engine's process ended (exit code {code}); it is started again, try once more")
        if not loaded.done():
            loaded.set_exception(died)
            loaded.exception()  # nobody waits for it when told to close meanwhile; that is no error
        self._loaded = None
        self.progress = Progress((), 0, 0, 0.0)
        self._fail_all(died)
        ended.set_result(code)

    def _fail_all(self, error: EngineLostError) -> None:
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.fail(error)
