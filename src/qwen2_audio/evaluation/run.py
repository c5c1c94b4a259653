"""A run: ask every sample once, whatever interrupts it, then score and report.

Samples are sorted by length and cut into batches from the whole list, and processes take whole batches in turn: so every
sample is asked in the same company however many processes there are and however often the run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.answerers import Answerer
from qwen2_audio.evaluation.answers import AnswersFile
from qwen2_audio.evaluation.processes import Processes, join_processes
from qwen2_audio.evaluation.run_scoring import rehearse, running_sums, score_run
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.task import Task, load_samples

if TYPE_CHECKING:
    from qwen2_audio.evaluation.judge import Judge

CONFIG = "config.json"
_LOOKED_AT = 4096
"""Bytes in the middle of a recording by which, with its size, it is known."""
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What is measured, and how.

    Attributes:
        tasks: in the order of the report.
        out: the run's folder; a run that was interrupted there goes on.
        data: the folder with the prepared data; not needed for a user's own files.
        batch_size: samples asked together.
        limit: only so many samples of each task, the first ones.
        profile: how answers are scored: "official" or "clean".
        judge: who marks the answers of judged tasks.
    """

    tasks: tuple[Task, ...]
    out: Path
    data: Path | None = None
    batch_size: int = 16
    limit: int | None = None
    profile: str = "official"
    judge: Judge | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise UsageError(
                f"the task {twice[0]!r} is given twice" if twice else "no task is given; name at least one"
            )
        for name, value in (("batch_size", self.batch_size), ("limit", 1 if self.limit is None else self.limit)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        judged = [task.name for task in self.tasks if task.metric == "judge"]
        if judged and self.judge is None:
            raise UsageError(f"{judged[0]} needs a judge; give --judge-url or --judge-replies")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come in this process.

    Attributes:
        seconds_left: an estimate from what this process has answered, None before it has.
        score: of the answers of this process so far, None where the metric has no running score.
    """

    task: str
    done: int
    samples: int
    seconds_left: float | None = None
    score: float | None = None


def evaluate(
    config: EvaluateConfig,
    answerer: Answerer,
    say: Callable[[str], None] = lambda _text: None,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Path:
    """Answer, score and report. Samples that a former run in the same folder has answered are not asked again; those that
    failed are.

    Returns:
        The run's folder.

    Raises:
        UsageError: no data, two tasks with rows of one source, a row without a reference, a folder that holds a run with
            another model, prompt or option.
    """
    samples = {task.name: load_samples(task, config.data, config.limit) for task in config.tasks}
    _refuse_shared_sources(samples)
    processes = join_processes()
    if processes.first:
        rehearse(config.tasks, samples, config.profile)
    identity = answerer.identity()
    settings = _settings(config, samples, identity) if processes.first else {}
    files = {name: AnswersFile(config.out, name, processes) for name in samples}
    if processes.first:
        _claim(config.out, settings)
        for name, file in files.items():
            file.gather(samples[name], failed=False)
    processes.wait()
    for task in config.tasks:
        _ask(task, samples[task.name], files[task.name], config, answerer, processes, progress)
    processes.wait()
    if processes.first:
        answers = {name: list(file.gather(samples[name], failed=True).values()) for name, file in files.items()}
        _report(config, settings, samples, answers, say)
    processes.leave()
    return config.out


def _refuse_shared_sources(samples: Mapping[str, Sequence[Sample]]) -> None:
    """Scores, slices and comparisons tell rows apart by their source and id."""
    owners: dict[str, str] = {}
    for task, rows in samples.items():
        for source in {sample.source for sample in rows}:
            if owners.setdefault(source, task) != task:
                raise UsageError(
                    f"{owners[source]} and {task} both have rows of the source {source!r}; put them into one file, "
                    'or give them another "source"'
                )


def _settings(
    config: EvaluateConfig, samples: Mapping[str, Sequence[Sample]], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """All that answers depend on; its hash is what a run is known by."""
    tasks = {}
    for task in config.tasks:
        asked = [
            [s.id, s.prompt, s.gt, s.source, s.chat, s.language, *map(os.path.basename, s.audio)]
            for s in samples[task.name]
        ]
        tasks[task.name] = {
            "metric": task.metric,
            "prompt": task.prompt or "each its own",
            "samples": len(asked),
            "sha256": _digest(asked),
            "recordings": _digest([[_recording(path) for path in s.audio] for s in samples[task.name]]),
        }
    # the batch size is among them: in half precision the company changes answers
    settings = {"answerer": dict(identity), "batch_size": config.batch_size, "limit": config.limit, "tasks": tasks}
    return {**settings, "hash": _digest(settings)}


def _recording(path: str) -> str:
    """What a recording is known by wherever it lies: a file's size and the middle of it; of what is no file here, its address
    (a missing one has its name in the rows)."""
    if "://" in path or path.startswith("data:"):
        return path
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, (size - _LOOKED_AT) // 2))
            return f"{size} {hashlib.sha256(file.read(_LOOKED_AT)).hexdigest()}"
    except (OSError, ValueError):  # what is wrong with it shows when it is heard
        return ""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder this run's, or make sure that it is."""
    file = folder / CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            beside = file.with_suffix(".part")
            beside.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            beside.replace(file)
            return
        before = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot use the folder {folder}: {error.strerror}; choose another --out") from error
    except ValueError as error:
        raise UsageError(f"{file} cannot be read ({error}); delete the folder or choose another --out") from error
    if not isinstance(before, Mapping) or before.get("hash") != settings["hash"]:
        differences = _differences(before, settings) or ["its configuration"]
        raise UsageError(
            f"{folder} holds another run, which differs in {'; '.join(differences)}; choose another --out, "
            "or run with the settings it was begun with"
        )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two settings, one phrase each, by its path."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**before, **now} if key != "hash"]
        found = [
            _differences(before.get(key, _NOTHING), now.get(key, _NOTHING), f"{path}.{key}" if path else key)
            for key in keys
        ]
        return [phrase for phrases in found for phrase in phrases]
    told, wanted = ("nothing" if value is _NOTHING else f"{value!r:.80}" for value in (before, now))
    return [] if before == now else [f"{path}: {told} there, {wanted} here"]


def _ask(
    task: Task,
    samples: Sequence[Sample],
    file: AnswersFile,
    config: EvaluateConfig,
    answerer: Answerer,
    processes: Processes,
    progress: Callable[[Progress], None],
) -> None:
    """Ask what this process has to, a batch at a time."""
    lengths = _lengths(samples)
    ordered = sorted(samples, key=lambda sample: -lengths[sample.id])  # the longest first: memory fails early, or not
    batches = [ordered[start : start + config.batch_size] for start in range(0, len(ordered), config.batch_size)]
    mine = batches[processes.rank :: processes.size]
    done = file.gathered()
    left = [[sample for sample in batch if sample.id not in done] for batch in mine]
    total, begun = sum(map(len, mine)), time.monotonic()
    answered = total - sum(map(len, left))
    work = sum(lengths[sample.id] for batch in left for sample in batch)
    worked = numerator = denominator = 0.0
    progress(Progress(task.name, answered, total))
    for batch in left:
        if not batch:
            continue
        answers = []
        for answer in answerer.answer(batch):
            file.add(answer)
            answers.append(answer)
        answered += len(batch)
        worked += sum(lengths[sample.id] for sample in batch)
        right, of = running_sums(answers, task, config.profile)
        numerator, denominator = numerator + right, denominator + of
        seconds = (time.monotonic() - begun) * (work - worked) / worked if worked else None
        running = numerator / denominator if denominator else None
        progress(Progress(task.name, answered, total, seconds, running))


def _lengths(samples: Sequence[Sample]) -> dict[str, float]:
    """How long each sample's recordings are, in seconds where all say so, else in bytes; at least 1, so that all is work."""
    if all(sample.duration > 0 for sample in samples):
        return {sample.id: sample.duration for sample in samples}
    return {sample.id: 1.0 + sum(map(_size, sample.audio)) for sample in samples}


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):  # what is wrong with it shows when it is heard
        return 0


def _report(
    config: EvaluateConfig,
    settings: Mapping[str, Any],
    samples: Mapping[str, Sequence[Sample]],
    answers: Mapping[str, Sequence[Answer]],
    say: Callable[[str], None],
) -> None:
    """Score and write the report.

    Raises:
        UsageError: something could not be scored, or a task has no answer at all; the report shows the rest.
    """
    from qwen2_audio.evaluation.report import write_report

    unanswered = []
    for name, given in answers.items():
        missing = len(samples[name]) - len(given)
        if missing:
            raise UsageError(f"{missing} samples of {name} have no answer; run the same command again")
        failed = [answer for answer in given if answer.error]
        if failed:
            first = f"{failed[0].sample.id}: {failed[0].error}"
            say(f"{name}: {len(failed)} of {len(given)} samples failed, such as {first}")
        if failed and len(failed) == len(given):
            unanswered.append(f"no sample of {name} got an answer")
    scores, problems = score_run(config.tasks, answers, config.profile, config.judge)
    if scores:  # of each a line, for who does not open the report
        everything = [answer for given in answers.values() for answer in given]
        write_report(config.out, scores, {**settings, "profile": config.profile}, everything)
        for score in scores:
            say(score.line())
    if unanswered or problems:
        raise UsageError("; ".join([*unanswered, *problems]))
