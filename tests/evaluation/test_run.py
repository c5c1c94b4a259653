"""A run asks every sample once, whatever happens to it; one process or two, killed or not, the report is the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qwen2_audio.api import load
from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation import report
from qwen2_audio.evaluation.answerers import AssistantAnswerer
from qwen2_audio.evaluation.answers import AnswersFile
from qwen2_audio.evaluation.judge import Judge
from qwen2_audio.evaluation.processes import Processes, join_processes
from qwen2_audio.evaluation.run import EvaluateConfig, Progress, evaluate
from qwen2_audio.evaluation.samples import Answer, Sample, read_answers
from qwen2_audio.evaluation.scores import Score
from qwen2_audio.evaluation.task import Family, Task, own_task
from tests.evaluation.echo import Echo
from tests.tiny import sound

ROOT = Path(__file__).parents[2]
WORDS = "one two three four five six seven eight nine ten eleven".split()
REPORT = ("scores.json", "report.md", "report.json", "report.csv", "report.html", "config.json")


def rows_in(folder: Path, count: int = 11, *, unreadable: Sequence[int] = ()) -> Path:
    """Three words each, of different lengths in seconds."""
    rows = [
        {
            "id": f"r{n}",
            "audio": f"{n}.wav",
            "prompt": "Say it",
            "gt": f"say {WORDS[n]} {'unreadable' if n in unreadable else 'again'}",
            "duration": (n * 7) % 11 + 1,
        }
        for n in range(count)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


Written = list[tuple[list[Score], dict[str, Any], list[Answer]]]


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


def test_answers_scores_and_order(tmp_path: Path, run: Callable[..., list[str]], written: Written) -> None:
    order = run(rows_in(tmp_path))
    durations = {f"r{n}": (n * 7) % 11 + 1 for n in range(11)}
    assert [durations[name] for name in order] == sorted(durations.values(), reverse=True)
    answers = read_answers(tmp_path / "run" / "answers.rows.jsonl")
    assert [answer.sample.id for answer in answers] == [f"r{n}" for n in range(11)]
    assert answers[3].response == "say four wrong" and answers[3].sample.audio == (str(tmp_path / "3.wav"),)
    ((score,), about, given) = written[0]
    assert (score.source, score.value, score.samples, score.failed) == ("rows", pytest.approx(1 / 3), 11, 0)
    assert about["answerer"] == {"model": "echo"} and about["profile"] == "official"
    assert [answer.response for answer in given] == [answer.response for answer in answers]


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


def test_when_all_fail_the_others_are_reported(tmp_path: Path, written: Written) -> None:
    good = rows_in(tmp_path, 2)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"audio": "x.wav", "gt": "it is unreadable"}))
    tasks = tuple(own_task(file, "wer", language="en") for file in (tmp_path / "bad.jsonl", good))
    said: list[str] = []
    with pytest.raises(UsageError, match=r"^no sample of bad got an answer$"):
        evaluate(EvaluateConfig(tasks, tmp_path / "run"), Echo(tmp_path / "log", 0), said.append)
    assert [(score.source, score.samples, score.failed) for score in written[0][0]] == [("bad", 0, 1), ("rows", 2, 0)]
    assert said[0] == "bad: 1 of 1 samples failed, such as 1: no such file"
    assert said[1:] == [score.line() for score in written[0][0]]


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


def test_progress_counts_and_foretells(tmp_path: Path, written: Written) -> None:
    seen: list[Progress] = []
    config = EvaluateConfig((own_task(rows_in(tmp_path), "wer", language="en"),), tmp_path / "run", batch_size=4)
    evaluate(config, Echo(tmp_path / "log", 0.01), progress=seen.append)
    assert [one.done for one in seen] == [0, 4, 8, 11] and {one.samples for one in seen} == {11}
    assert seen[0].seconds_left is None and seen[0].score is None
    left = [one.seconds_left for one in seen[1:]]
    assert left == sorted(left, reverse=True) and left[0] > 0 and left[-1] == 0  # type: ignore[type-var, operator]
    assert all(one.score == pytest.approx(1 / 3) for one in seen[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, "no task is given"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"profile": "offical"}, "unknown profile 'offical'; did you mean 'official'"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, run: Callable[..., list[str]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(rows_in(tmp_path), **settings)


def test_what_cannot_be_scored_is_not_asked(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    rows = rows_in(tmp_path)
    with pytest.raises(UsageError, match="needs its choices"):
        run(rows, task=own_task(rows, "string_match"))
    with pytest.raises(UsageError, match="rows needs a judge; give --judge-url or --judge-replies"):
        run(rows, task=own_task(rows, "judge"))
    (tmp_path / "bare.jsonl").write_text('{"id": "q1", "audio": "a.wav", "prompt": "", "gt": ""}')
    with pytest.raises(UsageError, match="'q1' has neither a question nor a reference to judge by"):
        run(rows, task=own_task(tmp_path / "bare.jsonl", "judge"), judge=Judge("m"))
    task = own_task(rows, "wer", language="en")
    with pytest.raises(UsageError, match="the task 'rows' is given twice"):
        run(rows, tasks=(task, task))
    (tmp_path / "more.jsonl").write_text(rows.read_text().replace('"id"', '"source": "rows", "id"'))
    with pytest.raises(UsageError, match="rows and more both have rows of the source 'rows'; put them into one file"):
        run(rows, tasks=(task, own_task(tmp_path / "more.jsonl", "wer", language="en")))
    assert not (tmp_path / "run").exists()


def test_broken_down_by_what_a_task_says(tmp_path: Path, run: Callable[..., list[str]], written: Written) -> None:
    rows = [
        {"id": str(n), "audio": [], "gt": gt, "more": {"choices": ["cat", "dog"], "task": kind}}
        for n, (gt, kind) in enumerate([("cat", "sound"), ("dog", "sound"), ("cat", "music")])
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    task = Task("mine", "string_match", Family("f", "F", "", ""), source="mine", breakdown=("task",), file=file)

    class Cat(Echo):
        def reply(self, sample: Sample) -> Answer:
            return Answer(sample, "a cat")

    run(file, task=task, answerer=Cat(tmp_path / "log", 0))
    values = {score.source: (score.value, score.samples) for score in written[0][0]}
    assert values == {
        "mine": (pytest.approx(2 / 3), 3),
        "mine/task=music": (1.0, 1),
        "mine/task=sound": (0.5, 2),
    }


def test_judged_tasks_are_marked_together(tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": "q", "audio": [], "prompt": "Who speaks?", "gt": "A man."}]
    file = tmp_path / "open.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts: list[str] = []

    def ask(_judge: Judge, requests: Sequence[Any], _progress: Any = None) -> list[Any]:
        from qwen2_audio.evaluation.chat_client import Reply

        prompts.extend(request.prompt for request in requests)
        return [Reply("4")] * len(requests)

    monkeypatch.setattr(Judge, "ask", ask)
    task = own_task(file, "judge", chat=True)
    evaluate(EvaluateConfig((task,), tmp_path / "run", judge=Judge("m")), Echo(tmp_path / "log", 0))
    ((score,), _, _) = written[0]
    assert (score.source, score.metric, score.value) == ("open", "judge", 4.0)
    assert len(prompts) == 1 and "Who speaks?" in prompts[0] and "A wrong" in prompts[0]


def test_batches_of_1_and_of_16_answer_alike(tmp_path: Path, folder: Path, written: Written) -> None:
    assistant = load(folder, device="cpu", dtype="float32")
    for n in range(6):
        soundfile.write(tmp_path / f"{n}.wav", sound(0.3 + 0.15 * n, seed=n), 16_000)
    rows = rows_in(tmp_path, 6)
    responses = []
    for batch_size in (1, 16):
        out = tmp_path / str(batch_size)
        config = EvaluateConfig((own_task(rows, "wer", language="en"),), out, batch_size=batch_size)
        evaluate(config, AssistantAnswerer(assistant, "tiny", max_new_tokens=5))
        responses.append([answer.response for answer in read_answers(out / "answers.rows.jsonl")])
    assert responses[0] == responses[1]
    assert len(set(responses[0])) > 1 and not any(answer.error for answer in written[0][2])
    assert written[0][0] == written[1][0]
