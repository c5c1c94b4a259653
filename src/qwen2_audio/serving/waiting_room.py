"""How many answers may wait, in number and in memory, and when those that find no place should come again."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

from qwen2_audio.serving.backend import OverloadedError

_RATE_OVER = 32
"""Answers from whose beginnings it is estimated how quickly the queue moves."""
_MIB = 1 << 20


class WaitingRoom:
    """Counts those who wait for their first token, and all who are not done. One event loop uses it.

    Args:
        places: how many may wait.
        nbytes: how large what they wait with may be together; a single one may always.
    """

    def __init__(self, places: int, nbytes: int) -> None:
        self._places, self._room = places, nbytes
        self.jobs = self.waiting = self.nbytes = 0
        self._begun: deque[float] = deque(maxlen=_RATE_OVER)

    def enter(self) -> Place:
        """A place; leave it by leaving its with-block.

        Raises:
            OverloadedError: all are taken.
        """
        if self.waiting >= self._places:
            raise OverloadedError(f"{self.waiting} answers are waiting already; try again later", self.retry_after)
        return Place(self)

    def check(self, nbytes: int) -> None:
        """Raise `OverloadedError` unless there is room for so much more."""
        if self.nbytes and self.nbytes + nbytes > self._room:
            held = f"{self.nbytes / _MIB:.0f} MiB of recordings"
            raise OverloadedError(f"{held} are waiting already; try again later", self.retry_after)

    def count_beginning(self) -> None:
        """An answer has begun."""
        self._begun.append(time.monotonic())

    @property
    def retry_after(self) -> float:
        """Seconds in which those who wait now will have begun, 1 to 60."""
        if len(self._begun) < 2:
            return 1.0
        rate = (len(self._begun) - 1) / max(time.monotonic() - self._begun[0], 1e-3)
        return min(max(self.waiting / rate, 1.0), 60.0)


class Place:
    """One of those in the room, until the with-block ends."""

    def __init__(self, room: WaitingRoom) -> None:
        self._room = room
        self._waits = False
        self._nbytes = 0

    def __enter__(self) -> Self:
        self._waits = True
        self._room.jobs += 1
        self._room.waiting += 1
        return self

    def weigh(self, nbytes: int) -> None:
        """Say how large that is with which it waits.

        Raises:
            OverloadedError: there is no room for it.
        """
        self._room.check(nbytes)
        self._room.nbytes += nbytes
        self._nbytes = nbytes

    def begin(self) -> None:
        """Its answer has begun: it waits no more."""
        self._room.count_beginning()
        self._stop_waiting()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_waiting()
        self._room.jobs -= 1

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._room.waiting -= 1
            self._room.nbytes -= self._nbytes
