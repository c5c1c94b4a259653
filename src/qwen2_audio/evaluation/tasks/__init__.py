"""The registry: every task by its name, and whole data sets by theirs."""

from __future__ import annotations

import difflib
from itertools import chain

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.task import Family, Task
from qwen2_audio.evaluation.tasks import (
    air_bench,
    aishell2,
    common_voice_15,
    covost2,
    fleurs,
    librispeech,
    meld,
    mmar,
    mmau,
    scorecard,
    vocalsound,
    voicebench,
)

_FILES = (librispeech, common_voice_15, fleurs, aishell2, covost2, meld, vocalsound, air_bench, mmau, mmar, voicebench)
TASKS: dict[str, Task] = {task.name: task for task in chain.from_iterable(file.TASKS for file in (*_FILES, scorecard))}
"""All tasks, in the order of the published tables, `mini`'s scorecard last."""
FAMILIES: dict[str, Family] = {task.family.name: task.family for task in TASKS.values()}
"""All data sets."""
GROUPS: dict[str, tuple[Task, ...]] = {
    **{name: tuple(task for task in TASKS.values() if task.family.name == name) for name in FAMILIES},
    "published": tuple(task for task in TASKS.values() if task.published),
    "scorecard": scorecard.TASKS,
}
"""Names that mean several tasks: a data set, all that has published numbers, `mini`'s scorecard."""


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}; {_nearest(name, list(TASKS))}")
    return TASKS[name]


def find_tasks(name: str) -> tuple[Task, ...]:
    """The task, or all tasks of the data set or group, of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name in TASKS:
        return (TASKS[name],)
    if name not in GROUPS:
        raise UsageError(f"unknown task {name!r}; {_nearest(name, [*TASKS, *GROUPS])}")
    return GROUPS[name]


def find_family(name: str) -> Family:
    """The data set of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name not in FAMILIES:
        raise UsageError(f"unknown data set {name!r}; {_nearest(name, list(FAMILIES))}")
    return FAMILIES[name]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(GROUPS)}"
