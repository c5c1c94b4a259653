"""Runs in a folder that holds one: gone on with where it is the same, killed or shared by two, and else refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.answers import AnswersFile
from qwen2_audio.evaluation.processes import Processes, join_processes
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.task import own_task
from tests.evaluation.echo import Echo
from tests.evaluation.rows import Written, rows_in

ROOT = Path(__file__).parents[2]
REPORT = ("scores.json", "report.md", "report.json", "report.csv", "report.html", "config.json")


def process(rows: Path, out: Path, log: Path, seconds: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("echo.py")), *map(str, (rows, out, log, seconds))]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    known = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=known, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    with ExitStack() as stack:
        for one in processes:
            stack.enter_context(one)
            stack.callback(one.kill)  # none is left behind when another fails
        for one in processes:
            _, err = one.communicate(timeout=300)
            assert one.returncode == 0, err


def asked(log: Path) -> list[str]:
    return sorted(line.split()[1] for line in log.read_text().splitlines())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, of which one cannot be answered, and `run`, by one process that nothing interrupts."""
    place = tmp_path_factory.mktemp("whole")
    finish(process(rows_in(place, unreadable=[4]), place / "run", place / "log"))
    return place


def test_a_finished_run_asks_nothing_and_reports_the_same(
    tmp_path: Path, run: Callable[..., list[str]], written: Written
) -> None:
    rows = rows_in(tmp_path)
    assert len(run(rows)) == 11
    before = (tmp_path / "run" / "answers.rows.jsonl").read_bytes()
    assert run(rows) == []
    assert (tmp_path / "run" / "answers.rows.jsonl").read_bytes() == before
    assert written[0] == written[1]
    assert run(rows, profile="clean") == []  # scoring is not part of what was asked
    assert written[2][0][0].profile == "clean"


def test_failures_are_counted_kept_and_tried_again(
    tmp_path: Path, run: Callable[..., list[str]], written: Written
) -> None:
    rows = rows_in(tmp_path, unreadable=[2, 5])
    run(rows)
    ((score,), _, answers) = written[0]
    assert (score.samples, score.failed) == (9, 2)
    assert [answer.sample.id for answer in answers if answer.error] == ["r2", "r5"]
    assert sorted(run(rows)) == ["r2", "r5"]

    class Mended(Echo):
        def reply(self, sample: Sample) -> Answer:
            return Answer(sample, sample.gt)

    run(rows, answerer=Mended(tmp_path / "log", 0))
    assert asked(tmp_path / "log") == ["r2", "r5"]
    assert (written[-1][0][0].samples, written[-1][0][0].failed) == (11, 0)
    assert len((tmp_path / "run" / "answers.rows.jsonl").read_text().splitlines()) == 11


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": "other"}, "answerer.model: 'echo' there, 'other' here"),
        ({"batch_size": 2}, "batch_size: 3 there, 2 here"),
        ({"limit": 4}, "limit: None there, 4 here"),
        ({"metric": "cer"}, "tasks.rows.metric: 'wer' there, 'cer' here"),
        ({"prompt": "Say that"}, r"tasks.rows.sha256: '\w+' there, '\w+' here"),
        ({"audio": "other.wav"}, r"tasks.rows.sha256: '\w+' there, '\w+' here"),
    ],
    ids=str,
)
def test_another_run_in_the_same_folder_is_refused(
    tmp_path: Path, run: Callable[..., list[str]], change: dict[str, Any], difference: str
) -> None:
    rows = rows_in(tmp_path)
    run(rows)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    if "prompt" in change:
        rows.write_text(rows.read_text().replace("Say it", change.pop("prompt"), 1))
    if "audio" in change:
        rows.write_text(rows.read_text().replace("3.wav", change.pop("audio"), 1))
    if "metric" in change:
        change["task"] = own_task(rows, change.pop("metric"), language="en")
    with pytest.raises(UsageError, match=f"holds another run, which differs in .*{difference}.*choose another --out"):
        run(rows, **change)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def heard_rows(folder: Path) -> Path:
    """Rows whose recordings are there, each longer than what is looked at of it."""
    folder.mkdir()
    for n in range(11):
        (folder / f"{n}.wav").write_bytes(b"head" + bytes([n]) * 20_000)
    return rows_in(folder)


def test_other_content_under_the_same_names_is_another_run(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    """As a copy of the recordings with noise, or coded anew."""
    rows = heard_rows(tmp_path / "here")
    assert len(run(rows)) == 11
    change = r"differs in tasks\.rows\.recordings: '\w+' there, '\w+' here; choose another --out"
    clip = tmp_path / "here" / "3.wav"
    for content in (b"head" + bytes([77]) * 20_000, clip.read_bytes() + b"tail"):  # as long as before; longer
        kept = clip.read_bytes()
        clip.write_bytes(content)
        with pytest.raises(UsageError, match=change):
            run(rows)
        clip.write_bytes(kept)
    assert run(rows) == []
    clip.unlink()
    with pytest.raises(UsageError, match=change):
        run(rows)


def test_recordings_may_be_moved(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    rows = heard_rows(tmp_path / "here")
    assert len(run(rows)) == 11
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(tmp_path / "there" / "rows.jsonl") == []


def test_a_recording_elsewhere_is_known_by_its_address(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    rows = rows_in(tmp_path)
    rows.write_text(rows.read_text().replace("3.wav", "http://a.example/3.wav", 1))
    run(rows)
    rows.write_text(rows.read_text().replace("http://a.example/", "http://b.example/", 1))
    with pytest.raises(UsageError, match=r"differs in tasks\.rows\.recordings"):
        run(rows)


def test_a_run_that_does_not_tell_its_recordings(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    """As earlier versions wrote it."""
    rows = rows_in(tmp_path)
    run(rows)
    file = tmp_path / "run" / "config.json"
    held = json.loads(file.read_text())
    del held["tasks"]["rows"]["recordings"]
    file.write_text(json.dumps(held | {"hash": "0" * 16}))
    with pytest.raises(
        UsageError, match=r"differs in tasks\.rows\.recordings: nothing there, '\w+' here; choose another"
    ):
        run(rows)


def test_a_torn_line_is_asked_again(tmp_path: Path, run: Callable[..., list[str]], written: Written) -> None:
    rows = rows_in(tmp_path)
    run(rows)
    file = tmp_path / "run" / "answers.rows.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) - 30])
    assert run(rows) == ["r10"]
    assert file.read_text() == whole and written[0] == written[1]


def test_a_line_that_is_no_json(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    rows = rows_in(tmp_path)
    run(rows)
    file = tmp_path / "run" / "answers.rows.jsonl"
    file.write_text("{\n" + file.read_text())
    with pytest.raises(UsageError, match=r"answers\.rows\.jsonl, line 1 is no JSON .*; delete that line"):
        run(rows)


def test_killed_and_run_again_is_never_killed(tmp_path: Path, whole: Path) -> None:
    rows, out, log = whole / "rows.jsonl", tmp_path / "killed", tmp_path / "log"
    for count in (1, 2):  # batches of three
        one = process(rows, out, log, 0.3)
        answers = out / "answers.rows.jsonl"
        deadline = time.monotonic() + 300
        while not (answers.exists() and answers.read_text().count("\n") >= 3 * count) and time.monotonic() < deadline:
            time.sleep(0.01)
        one.send_signal(signal.SIGKILL)
        one.communicate()
        assert not (out / "scores.json").exists()
    finish(process(rows, out, log))
    for name in (*REPORT, "answers.rows.jsonl"):
        assert (out / name).read_bytes() == (whole / "run" / name).read_bytes(), name
    assert set(asked(log)) == {f"r{n}" for n in range(11)}
    assert len(asked(log)) <= 11 + 2 * (3 + 1)  # no more twice than what was under way, and what had failed


def test_two_processes_are_one(tmp_path: Path, whole: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    out, log = tmp_path / "two", tmp_path / "log"
    finish(*[process(whole / "rows.jsonl", out, log, RANK=rank, **meeting) for rank in "01"])
    for name in (*REPORT, "answers.rows.jsonl"):
        assert (out / name).read_bytes() == (whole / "run" / name).read_bytes(), name
    assert asked(log) == sorted(f"r{n}" for n in range(11))  # none twice, none lost
    ranks = [line.split()[0] for line in log.read_text().splitlines()]
    assert (ranks.count("0"), ranks.count("1")) == (6, 5)
    assert not list(out.glob("answers.rows.*.jsonl"))


def test_what_an_interrupted_pair_has_answered_is_used_by_one(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    rows = rows_in(tmp_path)
    run(rows)
    out = tmp_path / "run"
    lines = (out / "answers.rows.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.rows.jsonl").write_text("".join(lines[:2]))
    (out / "answers.rows.0.jsonl").write_text("".join(lines[2:5]))
    (out / "answers.rows.1.jsonl").write_text("".join(lines[5:8]) + lines[8][:40])
    assert sorted(run(rows)) == ["r10", "r8", "r9"]
    assert (out / "answers.rows.jsonl").read_text() == "".join(lines)
    assert sorted(path.name for path in out.iterdir()) == ["answers.rows.jsonl", "config.json"]


def test_a_later_failure_does_not_replace_an_answer(tmp_path: Path) -> None:
    sample = Sample("a", ("a.wav",), "", "x", "s")
    one, two = (AnswersFile(tmp_path, "t", Processes(rank, 2)) for rank in (0, 1))
    one.add(Answer(sample, "heard"))
    two.add(Answer(sample, "", "broken"))
    assert one.gather([sample], failed=True)["a"].response == "heard"


def test_half_a_surrogate_pair_can_be_kept(tmp_path: Path) -> None:
    sample = Sample("a", (), "", "x", "s")
    file = AnswersFile(tmp_path, "t", Processes())
    file.add(Answer(sample, "odd \ud800 text"))
    assert file.gather([sample], failed=True)["a"].response == "odd ? text"


def test_processes_without_a_meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="WORLD_SIZE is 2 and MASTER_ADDR is not set; start with torchrun"):
        join_processes()
