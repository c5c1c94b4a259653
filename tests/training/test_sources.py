"""Where rows come from, in which order, and how often."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qwen2_audio.cli.main import app
from qwen2_audio.errors import UsageError
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.datasets import Rows, build_example
from qwen2_audio.training.sources import Mixture, open_source
from tests.tiny import sound


def lines(folder: Path, name: str, count: int) -> str:
    path = folder / name
    path.write_text("\n\n".join(json.dumps({"query": f"{name} {i}", "response": "yes"}) for i in range(count)))
    return str(path)


@given(seed=st.integers(0, 5), shuffle=st.booleans())
def test_every_row_once_in_each_repetition(tmp_path_factory: pytest.TempPathFactory, seed: int, shuffle: bool) -> None:
    mixture = Mixture(lines(tmp_path_factory.mktemp("x"), "a.jsonl", 7), shuffle=shuffle, seed=seed)
    turns = [[mixture.at(7 * again + i)[1] for i in range(7)] for again in range(4)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert (len({tuple(turn) for turn in turns}) > 1) == shuffle
    again = Mixture(mixture.sources[0].path.as_posix(), shuffle=shuffle, seed=seed)  # type: ignore[attr-defined]
    assert [again.at(i)[1] for i in (20, 3)] == [turns[2][6], turns[0][3]]  # any position first


def test_sources_by_weight(tmp_path: Path) -> None:
    a, b = lines(tmp_path, "a.jsonl", 5), lines(tmp_path, "b.jsonl", 50)
    mixture = Mixture({a: 3.0, b: 1.0}, shuffle=True, seed=1)
    found = [mixture.at(i) for i in range(20_000)]  # more than one block of draws
    share = sum(source is mixture.sources[0] for source, _ in found) / len(found)
    assert share == pytest.approx(0.75, abs=0.02)
    for source, size in zip(mixture.sources, (5, 50), strict=True):
        order = [index for owner, index in found if owner is source]
        assert all(sorted(order[i : i + size]) == list(range(size)) for i in range(0, len(order) - size, size))
    assert mixture.locate(mixture.number(7)) == mixture.at(7)
    assert Counter(mixture.number(i) for i in range(400)).keys() <= set(range(55))


def test_webdataset_tars(tmp_path: Path, processor: Processor) -> None:
    wav = io.BytesIO()
    soundfile.write(wav, sound(0.5), 16_000, format="WAV")
    asr = {"task": "asr", "language": "en", "text": "the cat"}
    chat = {"messages": [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "a cat"}]}
    files = {"000.wav": wav.getvalue(), "000.json": json.dumps(asr).encode(), "002.txt": b"hello"}
    files |= {"001.json": json.dumps(chat).encode(), "001.wav": wav.getvalue(), "002.wav": wav.getvalue()}
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./data.v1/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    rows = Rows(str(path), processor, build_example)
    assert len(rows) == 3
    assert all(rows[i].clips[0].frames == 50 for i in (0, 2))
    with pytest.raises(UsageError, match=r"shard\.tar, \./data\.v1/002: .*must be one of de, en"):
        rows[1]
    result = CliRunner().invoke(app, ["data", "check", str(path), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["kinds"] == {"bare": 1, "chat": 1}
    path.write_bytes(b"no tar")
    with pytest.raises(UsageError, match="cannot read the training data"):
        open_source(str(path))


def test_the_datasets_library(tmp_path: Path, processor: Processor) -> None:
    datasets = pytest.importorskip("datasets")
    soundfile.write(tmp_path / "a.wav", sound(0.5), 16_000)
    columns = {"audio": [str(tmp_path / "a.wav")] * 2, "text": ["the cat", "a dog"], "task": ["emotion"] * 2}
    made = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    made.save_to_disk(str(tmp_path / "set"))
    rows = Rows(f"datasets:{tmp_path}/set", processor, build_example)
    assert len(rows) == 2 and rows[1].clips[0].frames == 50
    with pytest.raises(UsageError, match="cannot read the data set"):
        open_source(f"datasets:{tmp_path}/none")


def test_columns_of_columns_of_the_datasets_library(tmp_path: Path, processor: Processor) -> None:
    datasets = pytest.importorskip("datasets")
    soundfile.write(tmp_path / "a.wav", sound(0.5), 16_000)
    asked = [{"type": "audio", "text": None}, {"type": "text", "text": "What is said?"}]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
    ]
    made = datasets.Dataset.from_list([{"messages": messages, "audios": [str(tmp_path / "a.wav")]}] * 2)
    made.cast_column("audios", datasets.List(datasets.Audio())).save_to_disk(str(tmp_path / "set"))
    rows = Rows(f"datasets:{tmp_path}/set", processor, build_example)
    assert rows[0].clips[0].frames == 50
