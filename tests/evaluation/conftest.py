"""What all tests of evaluation share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen2_audio.evaluation import plots, report
from qwen2_audio.evaluation.run import EvaluateConfig, evaluate
from qwen2_audio.evaluation.task import Task, own_task
from tests.evaluation.echo import Echo
from tests.evaluation.judge_server import KEY
from tests.evaluation.rows import Written


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more threads, and beside other work these wait for each other a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def judge_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for the judge, and no proxy on the way to it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """What the report was made of, in place of a report with charts."""
    kept: Written = []
    monkeypatch.setattr(
        report, "write_report", lambda _folder, scores, run, answers: kept.append((list(scores), dict(run), answers))
    )
    return kept


@pytest.fixture
def run(tmp_path: Path, written: Written) -> Callable[..., list[str]]:
    """Runs, and returns the ids that were asked."""

    def run(
        rows: Path, *, model: str = "echo", answerer: Any = None, task: Task | None = None, **settings: Any
    ) -> list[str]:
        log = tmp_path / f"asked{time.monotonic_ns()}"
        log.touch()
        config = EvaluateConfig(
            **{"tasks": (task or own_task(rows, "wer", language="en"),), "out": tmp_path / "run", "batch_size": 3}
            | settings
        )
        evaluate(config, answerer or Echo(log, 0, model))
        return [line.split()[1] for line in log.read_text().splitlines()]

    return run


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time goes into drawing."""
    monkeypatch.setattr(plots, "save", lambda _figure, folder, name: (folder / f"{name}.svg").write_text("<svg></svg>"))
