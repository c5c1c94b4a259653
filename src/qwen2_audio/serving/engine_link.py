"""The front's end of one engine process: the process, the pipe, and the two threads that keep the pipe off the event loop."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from qwen2_audio.serving.engine_messages import EnginePlan, Order, Report, Stop

logger = logging.getLogger(__name__)

Entry = Callable[[Connection, EnginePlan], None]
_LAST_SECONDS = 5.0
"""For a process that has closed its pipe to be gone; without a pipe it is of no use."""


class EngineLink:
    """One process from its start to its end; a new one is a new link.

    Args:
        entry: what the process runs; must be importable by name.
        on_report: called with everything that the process says, from a thread.
        on_end: called once, from a thread, with the exit code, after the last report; the process is gone then.
    """

    def __init__(
        self, plan: EnginePlan, entry: Entry, on_report: Callable[[Report], None], on_end: Callable[[int], None]
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang, and breaks CUDA
        self._connection, self._other = context.Pipe()
        self._process = context.Process(target=entry, args=(self._other, plan), name="qwen2-audio-engine", daemon=True)
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._on_report, self._on_end = on_report, on_end
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)

    def start(self) -> None:
        """Start the process; blocks for as long as that takes, not until it has loaded."""
        try:
            self._process.start()
        except BaseException:
            self._connection.close()
            raise
        finally:
            self._other.close()
        atexit.register(self.kill)  # before multiprocessing's own, which would ask with SIGTERM and wait
        try:
            self._writer.start()
            self._reader.start()  # from now on it clears everything away
        except BaseException:
            self._orders.put(None)
            self.kill()
            self._process.join()
            self._connection.close()
            atexit.unregister(self.kill)
            raise

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Hand over an order; returns at once."""
        self._orders.put(order)

    def stop(self, seconds: float) -> None:
        """Ask the process to end, kill it after so many seconds, and return when nothing of it is left. Blocks."""
        self.send(Stop())
        self._reader.join(seconds)
        if self._reader.is_alive():
            self.kill()
        self._reader.join()
        self._writer.join()

    def kill(self) -> None:
        """End the process without asking; returns at once, and everything is cleared away as after any other end."""
        with contextlib.suppress(ValueError, AttributeError):  # it has ended by itself, or was never started
            self._process.kill()

    def _read(self) -> None:
        try:
            while True:
                self._on_report(self._connection.recv())
        except (EOFError, OSError):  # the process has ended
            pass
        except Exception as error:
            logger.error("the engine's process said what cannot be read (%s)", type(error).__name__)
            self._process.kill()
        self._process.join(_LAST_SECONDS)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._orders.put(None)
        self._writer.join()
        atexit.unregister(self.kill)
        self._process.close()
        self._connection.close()
        self._on_end(-1 if code is None else code)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended; the reader knows, too
            while (order := self._orders.get()) is not None:
                self._connection.send(order)
