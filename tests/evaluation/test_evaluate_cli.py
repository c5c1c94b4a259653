"""`qwen2-audio evaluate` in all its spellings, and `data prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import typer
from typer.testing import CliRunner

from qwen2_audio.cli import evaluate as command
from qwen2_audio.cli.main import _Commands
from qwen2_audio.cli.prepare import prepare
from qwen2_audio.evaluation import compare as comparison
from qwen2_audio.evaluation import report
from qwen2_audio.evaluation import run as running
from qwen2_audio.evaluation.prepare import librispeech
from tests.tiny import sound

app = typer.Typer(cls=_Commands)
app.add_typer(command.evaluate, name="evaluate")
data = typer.Typer()
data.command()(prepare)
data.command("other")(lambda: None)
app.add_typer(data, name="data")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(message: str, *arguments: object) -> None:
    """It ends with exit code 2 and one line that says so."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for n in range(3):
        soundfile.write(tmp_path / f"{n}.wav", sound(0.3 + 0.1 * n, seed=n), 16_000)
    listed = [{"id": str(n), "audio": f"{n}.wav", "prompt": "Say", "gt": "the cat sat"} for n in range(3)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, listed)))
    return file


def test_rows_of_ones_own_from_model_to_report(rows: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (
        "evaluate", "--task", rows, "--metric", "wer", "--language", "en", "--model", folder, "--device", "cpu",
        "--out", out, "--batch-size", 2, "--max-new-tokens", 4,
    )  # fmt: skip
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out)
    lines = [json.loads(line) for line in (out / "answers.mine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2"] and not any("error" in line for line in lines)
    assert list(lines[0])[:4] == ["gt", "response", "source", "audio_path"]
    scores = json.loads((out / "scores.json").read_text())
    assert [(score["source"], score["metric"], score["samples"]) for score in scores["scores"]] == [("mine", "wer", 3)]
    assert scores["run"]["answerer"]["model"] == str(folder) and scores["run"]["answerer"]["dtype"] == "float32"
    assert (out / "report.md").is_file() and (out / "report.html").is_file()
    fails("another --out", *arguments[:-1], 5)


def test_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(running, "evaluate", lambda config, *_: started.append(config) or config.out)
    for arguments in (
        ("esc10", "--out", tmp_path, "--data", "x"),
        ("run", "esc10", "--out", tmp_path, "--data", "x"),
        ("--out", tmp_path, "--data", "x", "esc10"),
    ):
        assert invoke("evaluate", *arguments).exit_code == 0
    assert [[task.name for task in config.tasks] for config in started] == [["esc10"]] * 3
    invoke("evaluate", "librispeech", "librispeech_test_clean", "--out", tmp_path, "--limit", 5, "--profile", "clean")
    config = started[-1]
    assert len(config.tasks) == 4 and (config.limit, config.profile, config.batch_size) == (5, "clean", 16)
    result = invoke("evaluate", "--help")
    assert result.exit_code == 0 and all(name in result.stdout for name in ("run", "score", "compare"))


def test_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(running, "evaluate", lambda config, *_: started.append(config) or config.out)
    ask = ("evaluate", "air_bench_chat", "--out", tmp_path)
    invoke(*ask, "--judge-url", "http://host/v1", "--judge-model", "j", "--judge-mode", "official")
    judge = started[-1].judge
    assert (judge.model, judge.url, judge.mode) == ("j", "http://host/v1", "official")
    assert (judge.cache, judge.recorded) == (tmp_path / "judge_replies.jsonl", None)
    invoke(*ask, "--judge-replies", tmp_path / "replies.jsonl")
    assert (started[-1].judge.cache, started[-1].judge.recorded) == (None, tmp_path / "replies.jsonl")
    assert judge.key_variable is None  # OPENAI_API_KEY, which is not sent over plain http to another machine
    fails("air_bench_chat_speech needs a judge", *ask)
    fails("none of these tasks is judged", "evaluate", "esc10", "--out", tmp_path, "--judge-url", "http://host/v1")
    fails("give --judge-url or --judge-replies", *ask, "--judge-mode", "official")
    fails("recorded replies need no key", *ask, "--judge-replies", tmp_path / "r.jsonl", "--judge-key-env", "KEY")


def test_mistakes(tmp_path: Path, rows: Path) -> None:
    fails("unknown task 'librispech'; did you mean 'librispeech'?", "evaluate", "librispech", "--out", tmp_path)
    fails("give --out RUN", "evaluate", "esc10")
    mine = ("evaluate", "--task", rows, "--metric", "accuracy", "--out", tmp_path / "run")
    fails("adapter is the server's choice", *mine, "--model", "openai:http://127.0.0.1:1/v1", "--adapter", tmp_path)
    fails("device is the server's choice", *mine, "--base-url", "http://127.0.0.1:1/v1", "--device", "cpu")
    fails("--api-key-env is for a server", *mine, "--model", "mini", "--api-key-env", "MINE")
    fails(
        "two servers are named", *mine, "--base-url", "http://127.0.0.1:1/v1", "--model", "openai:http://127.0.0.1:2/v1"
    )
    translated = ("evaluate", "--task", rows, "--metric", "bleu", "--language", "zh", "--out", tmp_path / "run")
    fails("stands in the rows' source, as in mine_en_zh_test", *translated)
    fails("name a task, such as librispeech_test_clean", "evaluate", "--out", tmp_path)
    fails("needs --metric", "evaluate", "--task", rows, "--out", tmp_path)
    fails("are for rows of your own", "evaluate", "esc10", "--metric", "wer", "--out", tmp_path)
    fails("given as --task mine.jsonl --metric wer", "evaluate", "mine.jsonl", "--out", tmp_path)
    fails(f"there is no {tmp_path}/esc10.jsonl", "evaluate", "esc10", "--data", tmp_path, "--out", tmp_path)
    fails("unknown profile 'oficial'", "evaluate", "--task", rows, "--metric", "accuracy", "--out", tmp_path / "run",
          "--profile", "oficial")  # fmt: skip


def test_score_needs_no_model(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([{"gt": "a b c d", "response": "a b x d"}, {"gt": "go on", "response": "go on"}]))
    result = invoke("evaluate", "score", file, "--metric", "wer", "--language", "en", "--profile", "official")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("all\twer 0.166667 (95 % ") and "2 samples, profile official" in result.stdout
    result = invoke("evaluate", "score", file, "--metric", "wer", "--language", "en", "--json")
    (score,) = json.loads(result.stdout)
    assert (score["value"], score["samples"], score["details"]["substitutions"]) == (pytest.approx(1 / 6), 2, 1)
    assert "parts" not in score
    file.write_text(json.dumps([{"gt": "go on", "response": "", "source": "bad", "error": "no such file"},
                                {"gt": "go on", "response": "go on", "source": "good"}]))  # fmt: skip
    of_both = ("evaluate", "score", file, "--metric", "wer", "--language", "en")
    first, second = invoke(*of_both).stdout.splitlines()
    assert first == "bad\twer -, 0 samples, 1 failed, profile official"
    assert second == "good\twer 0.000000, 1 samples, profile official"
    rows = json.loads(invoke(*of_both, "--json").stdout, parse_constant=pytest.fail)
    assert [(row["source"], row["value"], row["failed"]) for row in rows] == [("bad", None, 1), ("good", 0.0, 0)]
    fails("unknown metric 'were'; did you mean 'wer'?", "evaluate", "score", file, "--metric", "were")
    fails("cannot read", "evaluate", "score", tmp_path / "none.json", "--metric", "wer")


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "compare_runs", lambda a, b: f"{a.name} beats {b.name}")
    assert invoke("evaluate", "compare", tmp_path / "a", tmp_path / "b").stdout == "a beats b\n"


def test_the_run_goes_on_behind_an_unreadable_clip(
    rows: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write_report", lambda *_: None)
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    result = invoke("evaluate", "--task", rows, "--metric", "accuracy", "--model", folder, "--device", "cpu",
                    "--out", tmp_path / "run", "--max-new-tokens", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "mine: 1 of 3 samples failed, such as 1: " in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "answers.mine.jsonl").read_text().splitlines()]
    assert [bool(line.get("error")) for line in lines] == [False, True, False]


def test_data_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(librispeech._ROWS, "test-other", 1)
    chapter = tmp_path / "LibriSpeech" / "test-other" / "1" / "2"
    chapter.mkdir(parents=True)
    (chapter / "1-2.trans.txt").write_text("1-2-0 GO\n")
    soundfile.write(chapter / "1-2-0.flac", sound(0.1), 16_000)
    result = invoke("data", "prepare", "librispeech", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'librispeech.jsonl'}\n"
    assert "librispeech_test_other: 1 rows" in result.stderr
    fails("did you mean 'librispeech'", "data", "prepare", "librispeach", tmp_path)
