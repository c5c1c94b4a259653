"""Marks to scores, by hand: a judge over a real connection gives known marks, one more to whoever stands first."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.air_bench import score_air_bench, score_by_judge, score_judged
from qwen2_audio.evaluation.judge import Judge
from qwen2_audio.evaluation.samples import Answer, Sample
from tests.evaluation.judge_server import Action, Drop, Hang, JudgeServer, Status, refusal

MARKS = {"truth": 8, "good": 9, "fair": 6, "poor": 3, "": 1}
ALL = (
    ("speech_QA", "good"), ("speech_dialogue_QA", "fair"), ("sound_QA", "poor"), ("music_QA", "good"),
    ("speech_and_sound_QA", "good"), ("speech_and_sound_QA", "fair"), ("speech_and_sound_QA", "poor"),
    ("speech_and_music_QA", "poor"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")


def ask(number: int, task: str, response: str, error: str = "") -> Answer:
    more = {"task_name": task, "dataset_name": "made-up", "meta_info": f"description {number}"}
    return Answer(
        Sample(f"s{number}", (), f"question {number}?", "truth", "any", chat=True, more=more), response, error
    )


def answers(*rows: tuple[str, str]) -> list[Answer]:
    return [ask(number, *row) for number, row in enumerate(rows)]


def shown(prompt: str, marker: str) -> str:
    """What stands between two markers."""
    return prompt.partition(f"[The Start of {marker}]\n")[2].partition(f"\n[The End of {marker}]")[0]


def mark(prompt: str, _times: int = 0) -> str:
    first, second = (shown(prompt, f"Assistant {n}s Answer") for n in (1, 2))
    return f"{MARKS[first] + 1} {MARKS[second]}"


def on(number: int, reference_first: bool, action: Action) -> Callable[[str, int], Action]:
    """Marks as ever, but for one order of one sample."""

    def script(prompt: str, _times: int) -> Action:
        first = shown(prompt, "Assistant 1s Answer") == "truth"
        return action if f"question {number}?" in prompt and first == reference_first else mark(prompt)

    return script


def quick(server: JudgeServer, **options: object) -> Judge:
    return replace(Judge("a-judge", server.url, attempts=2, pause=0.01, timeout=5.0), **options)


@pytest.mark.parametrize("profile", ["official", "clean"])
@pytest.mark.parametrize("mode", ["official", "deterministic"])
def test_groups_and_average(mode: str, profile: str) -> None:
    with JudgeServer(mark) as server:
        scores = score_air_bench(answers(*ALL), quick(server, mode=mode), profile=profile)
    # each answer: its mark as second, and one more as first; the mean of both is half a mark more
    assert {score.source: score.value for score in scores} == pytest.approx(
        {
            "air_bench_chat_speech": (9.5 + 6.5) / 2,
            "air_bench_chat_sound": 3.5,
            "air_bench_chat_music": 9.5,
            "air_bench_chat_mixed": ((9.5 + 6.5 + 3.5) / 3 + 3.5) / 2,  # the mean of two means, not of four answers
            "air_bench_chat_average": (8 + 3.5 + 9.5 + 5) / 4,
        }
    )
    assert [(score.samples, score.failed) for score in scores] == [(2, 0), (1, 0), (1, 0), (4, 0), (8, 0)]
    assert {(score.metric, score.profile, score.lower_is_better) for score in scores} == {("judge", profile, False)}
    assert len(server.bodies) == 16 and set(server.prompts) == {*server.prompts} and len(set(server.prompts)) == 16
    for score in scores:
        assert sum(p.numerator for p in score.parts) / sum(p.denominator for p in score.parts) == pytest.approx(
            score.value
        )
        assert sum(p.denominator for p in score.parts) == pytest.approx(len(score.parts))


def test_details() -> None:
    with JudgeServer(mark) as server:
        (score,) = score_air_bench(answers(("speech_QA", "good"), ("speech_QA", "fair")), quick(server))
    # reference first: 9 to 9 and 9 to 6; model first: 8 to 10 and 8 to 7
    assert score.details == {
        "judge": "a-judge",
        "mode": "deterministic",
        "scale": "1 to 10",
        "orders": ["reference_first", "model_first"],
        "address": f"{server.url}/chat/completions",
        "marks": 4,
        "model": 8.0,
        "reference": 8.5,
        "win_rate": 0.25,
        "by_order": {
            "reference_first": {"marks": 2, "model": 7.5, "reference": 9.0, "win_rate": 0.0},
            "model_first": {"marks": 2, "model": 8.5, "reference": 8.0, "win_rate": 0.5},
        },
        "answers": {"speech": 2},
        "failed_answers": 0,
        "failed_replies": 0,
        "failures": [],
    }
    assert [(part.id, part.numerator, part.denominator, dict(part.counts)) for part in score.parts] == [
        ("s0", 9.5, 1.0, {"marks": 2, "wins": 1}),
        ("s1", 6.5, 1.0, {"marks": 2, "wins": 0}),
    ]
    assert [(part.reference, part.response) for part in score.parts] == [("truth", "good"), ("truth", "fair")]
    assert score.interval == (6.5, 9.5)


def test_the_seed_of_the_official_mode_is_named() -> None:
    with JudgeServer(mark) as server:
        (score,) = score_air_bench(answers(("sound_QA", "fair")), quick(server, mode="official", seed=3))
    assert (score.details["mode"], score.details["seed"]) == ("official", 3)


@pytest.mark.parametrize(
    ("action", "reply", "error"),
    [
        ("First 9, second 6.", "First 9, second 6.", "no mark can be read"),
        ("99 6", "99 6", "no mark can be read"),
        (refusal("I must not."), "I must not.", "no mark can be read"),
        (Status(500), "", "status 500"),
        (Status(400, "bad"), "", "status 400: bad"),
        (Status(200, "<html>"), "", "the reply is no chat completion"),
        (Drop, "", "the connection broke"),
        (Hang, "", "no reply within 0.5 s"),
    ],
)
def test_no_sample_disappears(action: Action, reply: str, error: str) -> None:
    rows = answers(("speech_QA", "good"), ("speech_QA", "fair"), ("sound_QA", "poor"))
    with JudgeServer(on(1, True, action)) as server:
        judge = quick(server, timeout=0.5, attempts=1) if action is Hang else quick(server)
        official, _ = score_air_bench(rows, judge)
        clean, _ = score_air_bench(rows, judge, profile="clean")
    # as published: reference first the mean of 9, model first that of 10 and 7; clean: only "good", 9 and 10
    assert official.value == pytest.approx((9 + 8.5) / 2)
    assert clean.value == pytest.approx(9.5)
    for score, marks in ((official, [2, 1]), (clean, [2, 0])):
        assert (score.samples, score.failed) == (1, 1)
        assert [part.id for part in score.parts] == ["s0", "s1"]
        assert [part.counts["marks"] for part in score.parts] == marks
        assert (score.details["failed_answers"], score.details["failed_replies"]) == (0, 1)
        (failure,) = score.details["failures"]
        assert (failure["id"], failure["position"], failure["reply"]) == ("s1", "reference_first", reply)
        assert failure["error"].startswith(error)
    assert clean.parts[1].denominator == 0


def test_answers_that_failed_are_not_judged_but_counted() -> None:
    rows = [*answers(("music_QA", "fair"), ("music_QA", "")), ask(2, "music_QA", "", "cannot read x.wav")]
    with JudgeServer(mark) as server:
        (score,) = score_air_bench(rows, quick(server))
    assert score.value == pytest.approx((6.5 + 1.5) / 2)  # an empty answer is an answer
    assert (score.samples, score.failed, len(score.parts)) == (2, 1, 3)
    assert (score.details["failed_answers"], score.details["failed_replies"]) == (1, 0)
    assert not any("question 2?" in prompt for prompt in server.prompts)


def test_nothing_can_be_read() -> None:
    rows = [*answers(*ALL), ask(8, "sound_QA", "", "broken")]
    with JudgeServer(lambda prompt, _: "?" if "question 2?" in prompt else mark(prompt)) as server:
        scores = score_air_bench(rows, quick(server))
    assert [score.source.rpartition("_")[2] for score in scores] == ["speech", "sound", "music", "mixed"]  # no average
    sound = scores[1]
    assert math.isnan(sound.value) and sound.interval is None
    assert (sound.samples, sound.failed, len(sound.parts)) == (0, 2, 2)
    assert [failure["reply"] for failure in sound.details["failures"]] == ["?", "?"]
    assert sum(score.samples + score.failed for score in scores) == len(rows)


def test_an_interval_is_of_means_of_means() -> None:
    rows = answers(*[("speech_and_sound_QA", "good")] * 60, *[("speech_and_music_QA", "poor")] * 20)
    with JudgeServer(mark) as server:
        (score,) = score_air_bench(rows, quick(server))
    assert score.value == pytest.approx(6.5)  # not 8, the mean of answers
    assert score.details["answers"] == {"speech_and_sound": 60, "speech_and_music": 20}
    assert score.interval is not None and 5.5 < score.interval[0] < 6.5 < score.interval[1] < 7.5


def test_offline_the_scores_are_the_same(tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    with JudgeServer(on(4, False, "no idea")) as server:
        live = quick(server, cache=cache)
        scores = score_air_bench(answers(*ALL), live)
        assert len(server.bodies) == 16
        assert score_air_bench(answers(*ALL), live, profile="clean") != scores and len(server.bodies) == 16
    offline = replace(live, cache=None, recorded=cache)
    assert score_air_bench(answers(*ALL), offline) == scores
    changed = [replace(answer, response="poor") if answer.sample.id == "s1" else answer for answer in answers(*ALL)]
    with pytest.raises(UsageError, match=r"sample 's1' \(reference_first\), and 2 replies are missing"):
        score_air_bench(changed, offline)


CUT_RUN = """
import sys
from pathlib import Path
from qwen2_audio.evaluation.air_bench import score_air_bench
from qwen2_audio.evaluation.judge import Judge
from qwen2_audio.evaluation.samples import read_answers
url, cache, answers = sys.argv[1:]
score_air_bench(read_answers(Path(answers)), Judge("a-judge", url, cache=Path(cache), concurrency=2))
"""


def test_a_killed_run_and_a_whole_one_give_the_same(tmp_path: Path) -> None:
    rows = answers(*ALL)
    file, cache = tmp_path / "answers.jsonl", tmp_path / "replies.jsonl"
    file.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    with JudgeServer(mark) as server:
        whole = score_air_bench(rows, quick(server))
    with JudgeServer(lambda prompt, times: Hang if "question 4?" in prompt and not times else mark(prompt)) as server:
        run = subprocess.Popen([sys.executable, "-c", CUT_RUN, server.url, str(cache), str(file)])
        while len(server.bodies) < 10 and run.poll() is None:
            time.sleep(0.02)
        run.kill()
        run.wait()
        kept = len(cache.read_text().splitlines())
        assert (kept, len(server.bodies)) == (8, 10)
        here = {"address": f"{server.url}/chat/completions"}
        assert score_air_bench(rows, quick(server, cache=cache)) == [
            replace(one, details={**one.details, **here}) for one in whole
        ]
        assert len(server.bodies) == 10 + 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_name": "speech_qa"}, "unknown task_name of sample 's0' 'speech_qa'; did you mean 'speech_QA'?"),
        ({"meta_info": None}, "sample 's0' has no meta_info, which the judge must be told"),
        ({"meta_info": " "}, "sample 's0' has no meta_info"),
        ({"question": 7}, "sample 's0' has no question"),
    ],
)
def test_a_sample_that_cannot_be_judged(change: dict[str, object], message: str) -> None:
    answer = ask(0, "speech_QA", "good")
    sample = replace(answer.sample, more={**answer.sample.more, **change})
    with pytest.raises(UsageError) as error:
        score_air_bench([replace(answer, sample=sample)], Judge("a-judge", "http://127.0.0.1:9/v1"))
    assert message in str(error.value)


def test_an_unknown_profile() -> None:
    with pytest.raises(UsageError, match="unknown profile 'offical'; did you mean 'official'"):
        score_air_bench([], Judge("a-judge"), profile="offical")


def opened(number: int, source: str, prompt: str, gt: str, response: str, **more: str) -> Answer:
    return Answer(Sample(f"o{number}", (), prompt, gt, source, more=more), response)


def one_to_five(prompt: str, _times: int) -> Action:
    return {"good": "5", "fair": "Score: 3.5", "poor": "1", "odd": "well..."}[shown(prompt, "the Answer")]


def test_answers_marked_alone() -> None:
    rows = [
        opened(0, "b", "Why?", "", "good"),
        opened(1, "a", "Why?", "Because.", "fair"),
        opened(2, "b", "", "", "fair", question="What is said?", meta_info="What is said?"),
        opened(3, "b", "", "truth", "odd"),
        replace(opened(4, "b", "Why?", "", ""), error="broken"),
        opened(5, "b", "Why?", "truth", "poor", meta_info="a door slams"),
    ]
    with JudgeServer(one_to_five) as server:
        a, b = score_judged(rows, quick(server, mode="official"))
    assert (a.source, a.value, a.samples, a.failed, a.interval) == ("a", 3.5, 1, 0, None)
    assert (b.source, b.metric, b.profile, b.samples, b.failed) == ("b", "judge", "clean", 3, 2)
    assert b.value == pytest.approx((5 + 3.5 + 1) / 3)
    assert [(part.id, part.numerator, part.denominator) for part in b.parts] == [
        ("o0", 5, 1), ("o2", 3.5, 1), ("o3", 0, 0), ("o4", 0, 0), ("o5", 1, 1),
    ]  # fmt: skip
    assert b.details == {
        "judge": "a-judge", "mode": "deterministic", "scale": "1 to 5", "orders": ["alone"], "marks": 3,
        "address": f"{server.url}/chat/completions", "failed_answers": 1, "failed_replies": 1,
        "failures": [{"id": "o3", "position": "alone", "reply": "well...", "error": "no mark can be read"}],
    }  # fmt: skip
    assert {body["temperature"] for body in server.bodies} == {0.0} and len(server.bodies) == 5
    assert sum("What is said?" in prompt for prompt in server.prompts) == 1
    assert sum(prompt.count("What is said?") for prompt in server.prompts) == 1  # the description says no more
    assert sum("[Detailed Audio Description]\na door slams\n" in prompt for prompt in server.prompts) == 1


def test_nothing_to_judge_by() -> None:
    with pytest.raises(UsageError, match="sample 'o0' has neither a question nor a reference"):
        score_judged([opened(0, "a", "", " ", "good")], Judge("a-judge", "http://127.0.0.1:9/v1"))


def test_all_judged_tasks_together() -> None:
    def both(prompt: str, times: int) -> Action:
        return mark(prompt, times) if "Assistant 1s" in prompt else one_to_five(prompt, times)

    rows = [opened(0, "voicebench_alpacaeval", "Why?", "", "good", task_name="alpacaeval"), *answers(*ALL)]
    with JudgeServer(both) as server:
        scores = score_by_judge(rows, quick(server))
    assert [score.source for score in scores] == [
        *(f"air_bench_chat_{group}" for group in ("speech", "sound", "music", "mixed", "average")),
        "voicebench_alpacaeval",
    ]
