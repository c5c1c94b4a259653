"""Published data sets, as people download them, to rows in the official shape: one file of JSON lines a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare import (
    air_bench,
    aishell2,
    common_voice_15,
    covost2,
    fleurs,
    librispeech,
    meld,
    mmau,
    vocalsound,
    voicebench,
)
from qwen2_audio.evaluation.prepare.rows import Absent, Row, missing_among
from qwen2_audio.evaluation.task import Family
from qwen2_audio.evaluation.tasks import find_family

_READERS: dict[str, Callable[[Path, Absent], Iterator[Row]]] = {
    "librispeech": librispeech.read,
    "common_voice_15": common_voice_15.read,
    "fleurs_zh": fleurs.read,
    "aishell2": aishell2.read,
    "covost2": covost2.read,
    "meld": meld.read,
    "vocalsound": vocalsound.read,
    "air_bench_chat": air_bench.read_chat,
    "air_bench_foundation": air_bench.read_foundation,
    "mmau": mmau.read_mmau,
    "mmar": mmau.read_mmar,
    "voicebench": voicebench.read,
}

_NAMED = 4
"""Missing files that a message names."""


def prepare(name: str, folder: Path, out: Path | None = None, say: Callable[[str], None] = lambda _text: None) -> Path:
    """Write a data set's rows: `id, audio, prompt, gt, source, language, speaker, duration` and what else the task knows.

    Args:
        name: of the data set, such as "librispeech".
        folder: where it was unpacked.
        out: the file to write; `<folder>/<name>.jsonl` by default. Recordings below its folder are named relative to it.
        say: told which parts of the data set are not there, and how many rows were written.

    Returns:
        The file.

    Raises:
        UsageError: an unknown name, or files are missing (the message names them, and says what to fetch from where).
    """
    family = find_family(name)
    if name not in _READERS:
        raise UsageError(f"{name} needs no preparation: it comes with {family.layout.split()[0]}")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; {family.advice()}")
    absent: list[Path] = []
    rows = list(_READERS[name](folder, absent.append))
    _check(rows, family, absent)
    for path in absent:
        say(f"left out: there is no {path}")
    out = out or folder / f"{name}.jsonl"
    _write(rows, out)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    for source, count in counts.items():
        say(f"{source}: {count} rows")
    return out


def _check(rows: list[Row], family: Family, absent: list[Path]) -> None:
    """Raise `UsageError` when there is nothing, or a recording is not there: scores of fewer rows would not compare."""
    if not rows:
        named = f"there is no {' and no '.join(map(str, absent[:_NAMED]))}" if absent else "its lists are empty"
        raise UsageError(f"nothing of {family.title} was found: {named}; {family.advice()}")
    missing = missing_among(rows)
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(rows)} recordings of {family.title} are missing, the first is {missing[0]}; "
            f"{family.advice()}"
        )


def _write(rows: list[Row], out: Path) -> None:
    beside = out.with_name(f"{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        base = out.parent.resolve()
        with open(beside, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row.to_json(base), ensure_ascii=False) + "\n")
        beside.replace(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; choose another --out") from error
