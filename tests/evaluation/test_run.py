"""A run asks every sample once, whatever happens to it, and nothing that cannot be scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qwen2_audio.api import load
from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.answerers import AssistantAnswerer
from qwen2_audio.evaluation.judge import Judge
from qwen2_audio.evaluation.run import EvaluateConfig, Progress, evaluate
from qwen2_audio.evaluation.samples import Answer, Sample, read_answers
from qwen2_audio.evaluation.task import Family, Task, own_task
from tests.evaluation.echo import Echo
from tests.evaluation.rows import Written, rows_in
from tests.tiny import sound


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
