"""An engine's process without a model: it answers as its script says. Started by name, so it is a module of its own."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

from qwen2_audio.errors import CheckpointError, UsageError
from qwen2_audio.generation.sequence import FinishReason, Step
from qwen2_audio.serving.engine_messages import (
    Abort,
    Broken,
    EnginePlan,
    Loaded,
    LoadFailed,
    Progress,
    Refused,
    Stop,
    Submit,
)

SCRIPT = "script"
"""The name of the "adapter" whose folder holds what to do: a file `fail` or `die` says how many starts go wrong, and the
folder gets a line in `starts` for each."""
SILENT, FOREVER, DEADLY, REFUSED, BROKEN = 1, 2, 3, 4, 5
"""Seeds that ask for an answer which never begins, never ends, kills the process, is refused, or breaks the engine."""
TOKEN = 65


def run_fake_engine(connection: Connection, plan: EnginePlan) -> None:
    folder = Path(dict(plan.adapters)[SCRIPT])
    starts = folder / "starts"
    with starts.open("a") as file:
        file.write("start\n")
    count = len(starts.read_text().splitlines())
    if count <= _number(folder / "fail"):
        connection.send(LoadFailed(CheckpointError("the folder is gone; put it back")))
        return
    if count <= _number(folder / "die"):
        os._exit(7)
    connection.send(Loaded())
    try:
        _answer(connection)
    except (EOFError, ConnectionError):
        return


def _answer(connection: Connection) -> None:
    held: set[int] = set()
    while True:
        order = connection.recv()
        steps: tuple[Step, ...] = ()
        if isinstance(order, Stop):
            return
        if isinstance(order, Abort):
            held.discard(order.ticket)
        elif isinstance(order, Submit):
            options = order.request.options
            if options.seed == DEADLY:
                os._exit(9)
            if options.seed == BROKEN:
                connection.send(Broken("RuntimeError", "somewhere"))
                os._exit(1)
            if options.seed == REFUSED:
                connection.send(Refused(order.ticket, UsageError("no such schema")))
                continue
            if options.seed in (SILENT, FOREVER):
                held.add(order.ticket)
            if options.seed == FOREVER:
                steps = (Step(order.ticket, TOKEN, "A", None),)
            elif options.seed != SILENT:
                count = options.max_new_tokens or 3
                steps = tuple(Step(order.ticket, TOKEN, "A", _end(n, count)) for n in range(1, count + 1))
        connection.send(Progress(steps, len(held), 0, len(held) / 100))


def _end(number: int, count: int) -> FinishReason | None:
    return "length" if number == count else None


def _number(file: Path) -> int:
    return int(file.read_text()) if file.exists() else 0
