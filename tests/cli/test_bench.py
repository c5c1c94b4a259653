"""`bench` measures the sides of one checkpoint and says so as a table, as JSON and as a plot."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from qwen2_audio.bench import machine, scenarios, sides
from qwen2_audio.bench.agreement import agreement
from qwen2_audio.bench.figures import Times
from qwen2_audio.bench.report import Report
from qwen2_audio.bench.run import measure
from qwen2_audio.bench.scenarios import Scenario
from qwen2_audio.bench.server_side import Server
from qwen2_audio.bench.sides import Wave, noise
from qwen2_audio.cli import bench as command
from qwen2_audio.cli.main import app
from qwen2_audio.errors import UsageError
from qwen2_audio.generation.sequence import Step
from tests.remote.scripted import Say, ScriptedServer, running

SHORT = [
    Scenario((1.0,), 3),
    Scenario((1.0, 2.0), 3),
    Scenario((1.0, 1.0), 3, "shared"),
    Scenario((1.0, 1.0), 3, "turns"),
    Scenario((1.0, 2.0), 3, "crowd"),
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "standard", lambda tokens, **_: SHORT)
    monkeypatch.setattr(machine, "_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_SIDE", 64)
    monkeypatch.setattr(machine, "_BUDGET", 0.02)


@pytest.mark.usefixtures("short")
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_both_sides(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    arguments = ["bench", "--model", str(folder), "--runs", "2", "--plain", "--json", "--plot", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["what"] for row in report["figures"]] == [
        "a clip of 1 s, 3 tokens: first token",
        "a clip of 1 s, 3 tokens: a step",
        "2 clips of 1 to 2 s, 3 tokens: first tokens",
        "2 clips of 1 to 2 s, 3 tokens: a step",
        "2 clips of 1 to 2 s, 3 tokens: all",
        "2 questions, one clip of 1 s, 3 tokens: first token",
        "2 questions, one clip of 1 s, 3 tokens: a step",
        "2 turns, a clip of 1 s, 3 tokens: first token",
        "2 turns, a clip of 1 s, 3 tokens: a step",
        "2 streams of 1 to 2 s, 3 tokens: first tokens",
        "2 streams of 1 to 2 s, 3 tokens: a step",
        "2 streams of 1 to 2 s, 3 tokens: all",
    ]
    assert report["about"]["divergence from transformers in nats"] < 1e-6
    assert report["about"]["same choices"] == 1
    for row in report["figures"]:
        assert row["ratio"].keys() == {"plain steps", "transformers"}
        assert all(0 < side["low"] <= side["median"] <= side["high"] for side in row["seconds"].values())
    assert picture.read_text().lstrip().startswith("<?xml")


def test_only_whole_answers_of_a_server_are_timed() -> None:
    with running(ScriptedServer()) as scripted:  # which counts four tokens, whatever it is asked for
        server = Server(scripted.url, "it")
        assert server.run(Scenario((1.0,), 4)).whole > 0
        with pytest.raises(UsageError, match="it wrote 4 tokens where 3 were asked for; its times cannot be compared"):
            server.run(Scenario((1.0,), 3))
        scripted.usual = Say(error_after=1)
        with pytest.raises(UsageError, match=r"^it broke an answer off .*the engine died"):
            server.run(Scenario((1.0,), 4))


class Scripted:
    """A side that notes the numbers of its clips."""

    def __init__(self, name: str, *, counts: bool = True) -> None:
        self.name, self.counts = name, counts
        self.numbers: list[int] = []

    def run(self, scenario: Scenario, fresh: int = 0) -> Times:
        self.numbers.append(fresh)
        return Times(1.0, 0.5 if self.counts else None, 2.0)


def test_no_run_hears_a_clip_of_another() -> None:
    """Servers keep encoded clips and what they have computed of prompts, also from an earlier `bench`."""
    both = [Scripted("ours"), Scripted("it")]
    for _ in range(2):
        measure([SHORT[0], SHORT[1]], both, 2, lambda _: (0.1, 0.1), lambda _: None)
    numbers = [*both[0].numbers, *both[1].numbers]
    assert len(numbers) == len(set(numbers)) == 24
    assert (noise(1.0, 0, numbers[0]) != noise(1.0, 0, numbers[1])).any()


def test_a_server_hears_new_clips_in_each_run_and_one_in_a_shared_run() -> None:
    with running(ScriptedServer()) as scripted:
        server = Server(scripted.url, "it")
        for fresh in (1, 2):
            server.run(Scenario((1.0, 1.0), 4), fresh)
            server.run(Scenario((1.0, 1.0), 4, "shared"), fresh)
            server.run(Scenario((1.0, 1.0), 4, "turns"), fresh)
        clips = [
            message["content"][0]["input_audio"]["data"] for body in scripted.bodies for message in body["messages"][:1]
        ]
    first, second = clips[:6], clips[6:]
    assert len(set(first[:2])) == 2 and len(set(first[2:])) == 1
    assert not set(first) & set(second)


def test_a_step_of_a_crowd_counts_the_tokens_that_come_after_the_last_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand: a token a second of two streams of three tokens; when the second stream begins, at 3 s, three more are to come:
    3 s for 1.5 tokens of each."""
    clock = itertools.count(1)
    monkeypatch.setattr(sides, "time", SimpleNamespace(perf_counter=lambda: now))
    now = 0.0

    def steps() -> Iterator[Step]:
        nonlocal now
        for index in (0, 0, 1, 0, 1, 1):
            now = float(next(clock))
            yield Step(index, 7, "", None)

    assert sides.timed(steps(), 0.0, 2) == Times(3.0, 2.0, 6.0)


def test_what_a_server_does_not_show_is_left_out() -> None:
    with running(ScriptedServer()) as scripted:
        server = Server(scripted.url, "it")
        assert server.run(Scenario((1.0,), 4)).step is not None
        assert server.run(Scenario((1.0, 2.0), 4, "crowd")).step is None
    found = measure(
        [SHORT[1]], [Scripted("ours"), Scripted("it", counts=False)], 2, lambda _: (0.1, 0.1), lambda _: None
    )
    assert [set(one.ratio) for one in found] == [{"it"}, set(), {"it"}]
    lines = Report({"model": "m"}, {"read": 1e9, "products": 1e9}, found).as_markdown().splitlines()
    assert (
        "| 2 clips of 1 to 2 s, 3 tokens: a step | 500 ms (500 ms to 500 ms, 4.0 tokens/s) | - | 100 ms | 20% |"
        in lines
    )


def test_agreement_is_divergence_and_choices() -> None:
    """By hand: KL([.5, .5] from [.9, .1]) = 0.51 nats; of two choices one is the same."""

    class Says:
        def __init__(self, *rows: list[float]) -> None:
            self._rows = torch.tensor(rows).log()

        def predict(self, wave: Wave, answer: str) -> torch.Tensor:
            return self._rows

    found = agreement(Says([0.9, 0.1], [0.1, 0.9]), Says([0.5001, 0.4999], [0.5001, 0.4999]))
    assert found == {"divergence from transformers in nats": 0.51, "same choices": 0.5}


@pytest.mark.usefixtures("short")
def test_alone_in_int8_as_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    arguments = ["bench", "-m", str(folder), "--runs", "1"]
    result = CliRunner().invoke(app, [*arguments, "--alone", "--quantize", "int8"])
    assert result.exit_code == 0, result.output
    assert "weights int8" in result.stdout
    assert "| a clip of 1 s, 3 tokens: first token |" in result.stdout
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2


@pytest.mark.usefixtures("short")
def test_memory_is_read_before_transformers_loads_the_model_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    make = command._sides

    def made(*given: Any, **named: Any) -> Any:
        order.append("sides")
        return make(*given, **named)

    def resident() -> int:
        order.append("memory")
        return 3 * 10**9

    monkeypatch.setattr(command, "_sides", made)
    monkeypatch.setattr(command, "_resident", resident)
    monkeypatch.setattr(scenarios, "standard", lambda tokens, **_: SHORT[:1])
    result = CliRunner().invoke(app, ["bench", "-m", str(folder), "--runs", "1", "--alone", "--json"])
    assert result.exit_code == 0, result.output
    assert order == ["memory", "sides"] and json.loads(result.stdout)["about"]["resident GB"] == 3.0


def test_many_clips_at_once() -> None:
    assert scenarios.standard(5, clips=[2.0, 3.0], streams=4) == [Scenario((2.0,) * 4, 5), Scenario((3.0,) * 4, 5)]
    result = CliRunner().invoke(app, ["bench", "--streams", "4"])
    assert result.exit_code == 2 and "give --clip" in result.output
    result = CliRunner().invoke(app, ["bench", "--clip", "2", "--streams", "4", "--plot", "x.svg"])
    assert result.exit_code == 2 and "--plot draws single clips" in result.output


def test_random_weights_are_made_where_they_are_to_be(folder: Path, tmp_path: Path) -> None:
    """As on a GPU: nothing but side files is written."""
    from qwen2_audio.bench.random_model import has_weights, load_random, write_side_files
    from qwen2_audio.bench.transformers_side import Transformers
    from qwen2_audio.checkpoints.load import load_config
    from qwen2_audio.runtime import choose_runtime

    runtime = choose_runtime("cpu")
    write_side_files(load_config(folder), tmp_path / "random", folder, runtime.dtype)
    assert not has_weights(tmp_path / "random") and has_weights(folder)
    assistant = load_random(tmp_path / "random", runtime)
    assert len(assistant.chat("hello", max_new_tokens=3, ignore_eos=True).tokens) == 3
    side = Transformers(tmp_path / "random", runtime.device, runtime.dtype, compiled=False)
    assert side.run(SHORT[0]).whole > 0
