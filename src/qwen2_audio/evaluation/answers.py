"""The answers files of a run: one JSON line an answer as it comes, whatever happens to the process that writes it.

With one process a task has `answers.<task>.jsonl`, with several also `answers.<task>.<rank>.jsonl` until they are merged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.processes import Processes
from qwen2_audio.evaluation.samples import Answer, Sample


class AnswersFile:
    """The answers to one task in a run's folder."""

    def __init__(self, folder: Path, task: str, processes: Processes) -> None:
        self.path = folder / f"answers.{task}.jsonl"
        self._folder, self._task = folder, task
        self._own = self.path if processes.size == 1 else folder / f"answers.{task}.{processes.rank}.jsonl"

    def gather(self, samples: Sequence[Sample], *, failed: bool) -> dict[str, Answer]:
        """Put all there is into the one file, in the order of the samples, and delete the others.

        Args:
            failed: whether samples that failed keep their failure; else they are as if they had not been asked.

        Returns:
            The answers by id. Only the first process may call this, and only while no other writes.
        """
        wanted = {sample.id: sample for sample in samples}
        found: dict[str, Answer] = {}
        shards = sorted(self._folder.glob(f"answers.{self._task}.[0-9]*.jsonl"))
        for file in (self.path, *shards):
            for answer in _read(file):
                id = answer.sample.id
                better = id not in found or not answer.error or found[id].error
                if id in wanted and better and (failed or not answer.error):
                    found[id] = replace(answer, sample=wanted[id])
        ordered = {sample.id: found[sample.id] for sample in samples if sample.id in found}
        beside = self.path.with_suffix(".part")
        beside.write_text("".join(map(_line, ordered.values())), encoding="utf-8", errors="replace")
        beside.replace(self.path)
        for file in shards:
            file.unlink()
        return ordered

    def gathered(self) -> set[str]:
        """Ids of the samples whose answers stand in the one file."""
        return {answer.sample.id for answer in _read(self.path)}

    def add(self, answer: Answer) -> None:
        """Write a further answer, so that it outlives this process.

        Raises:
            UsageError: the file cannot be written.
        """
        try:
            with open(self._own, "a", encoding="utf-8", errors="replace") as file:
                file.write(_line(answer))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(
                f"cannot write {self._own}: {error.strerror}; what was answered before is kept, mend it and run again"
            ) from error


def _line(answer: Answer) -> str:
    """A line; half a surrogate pair, which a server may send, becomes "?" where it is written."""
    return json.dumps(answer.to_json(), ensure_ascii=False) + "\n"


def _read(path: Path) -> Iterator[Answer]:
    """Answers of a file that may not be there, and whose last line may be torn."""
    if not path.exists():
        return
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield Answer.from_json(json.loads(line), number)
            except json.JSONDecodeError as error:
                raise UsageError(
                    f"{path}, line {number} is no JSON ({error.msg}); delete that line and run again"
                ) from error
