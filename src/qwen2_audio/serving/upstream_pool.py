"""Which of several engines is asked next, and which is left alone for a while. No sockets here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from qwen2_audio.remote.address import Address
from qwen2_audio.remote.models import RemoteModel

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds that an engine is left alone after its first failure, doubled with each further one in a row."""


@dataclass(eq=False, slots=True)
class Engine:
    """A server, and what is known of it.

    Attributes:
        models: what it serves, () before it has answered once.
        reachable: whether it answered when it was last asked anything.
        outstanding: answers that it works on for us.
        failures: in a row, of those it took and did not finish.
        paused_until: on the clock of the pool.
    """

    address: Address
    models: tuple[RemoteModel, ...] = ()
    reachable: bool = False
    outstanding: int = 0
    failures: int = 0
    paused_until: float = 0.0

    def model(self, name: str) -> RemoteModel | None:
        """What it says of a model, None where it has none of that name."""
        return next((model for model in self.models if model.name == name), None)


class Pool:
    """Engines, of which the one with the fewest answers in progress comes next."""

    def __init__(self, engines: Sequence[Engine], clock: Callable[[], float]) -> None:
        self.engines = tuple(engines)
        self._clock = clock
        self._turn = 0

    def choose(self, model: str, tried: Collection[Engine] = ()) -> Engine | None:
        """The next engine for a model; among equals they take turns. None where all that have it are down or were tried."""
        self._turn += 1
        count = len(self.engines)
        in_turn = [self.engines[(self._turn + index) % count] for index in range(count)]
        usable = [engine for engine in in_turn if engine not in tried and engine.model(model) and self.usable(engine)]
        return min(usable, key=lambda engine: engine.outstanding, default=None)

    def usable(self, engine: Engine) -> bool:
        """Whether it may be asked now."""
        return engine.reachable and self._clock() >= engine.paused_until

    @property
    def models(self) -> tuple[RemoteModel, ...]:
        """Everything that is served somewhere, each name once, in the order of the engines."""
        found: dict[str, RemoteModel] = {}
        for model in (model for engine in self.engines for model in engine.models):
            found.setdefault(model.name, model)
        return tuple(found.values())

    def worked(self, engine: Engine) -> None:
        """It finished an answer."""
        engine.failures, engine.paused_until = 0, 0.0

    def failed(self, engine: Engine) -> None:
        """It took a question and did not answer it. What it had in progress besides fails with it, and does not count again."""
        if self._clock() < engine.paused_until:
            return
        engine.paused_until = self._clock() + min(FIRST_PAUSE * 2.0 ** min(engine.failures, 10), LONGEST_PAUSE)
        engine.failures += 1
