"""Stopping a run from outside without losing anything."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SAME = 2.0
"""Seconds within which a repeated signal is the same one."""


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, the first SIGTERM or Ctrl-C calls `stop`; one that comes later does what it always does.

    One and the same stop reaches a process twice where the launcher, which got it too, passes it on. Outside the main thread,
    where Python delivers no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    first: dict[int, float] = {}

    def handle(number: int, _: Any) -> None:
        if time.monotonic() - first.setdefault(number, time.monotonic()) < _SAME:
            stop()
            return
        signal.signal(number, before[signal.Signals(number)])
        signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
