"""Which part of a typed line names recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen2_audio.cli.lines import split_line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.wav", "two words.FLAC", "it's.mp3", "notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "paths", "text"),
    [
        ("Hello there", [], "Hello there"),
        ("", [], ""),
        ("a.wav", ["a.wav"], ""),
        (" 'a.wav' ", ["a.wav"], ""),
        ("two words.FLAC", ["two words.FLAC"], ""),
        ("'two words.FLAC' ", ["two words.FLAC"], ""),
        (r"two\ words.FLAC a.wav", ["two words.FLAC", "a.wav"], ""),
        ("it's.mp3", ["it's.mp3"], ""),
        ("a.wav What's that?", ["a.wav"], "What's that?"),
        ("What's in a.wav", ["a.wav"], "What's in"),
        ("Is a.wav loud?", [], "Is a.wav loud?"),
        ("nothere.wav", ["nothere.wav"], ""),
        ("nothere.wav is missing", [], "nothere.wav is missing"),
        ("notes.txt", [], "notes.txt"),
        ("'tis the season", [], "'tis the season"),
        ("a backslash \\", [], "a backslash \\"),
        ("https://host/x.mp3?key=1", ["https://host/x.mp3?key=1"], ""),
        ("https://host/stream", ["https://host/stream"], ""),
        ("https://host/x.mp3 What is it?", ["https://host/x.mp3"], "What is it?"),
        ("https://host/page tells all", [], "https://host/page tells all"),
        ("https://[host]/x.mp3 What is it?", ["https://[host]/x.mp3"], "What is it?"),
    ],
)
def test_split_line(here: Path, line: str, paths: list[str], text: str) -> None:
    assert split_line(line) == (paths, text)


def test_home_and_file_urls(here: Path) -> None:
    assert split_line("~/a.wav") == ([str(here / "a.wav")], "")
    assert split_line(f"file://{here}/two%20words.FLAC now") == ([str(here / "two words.FLAC")], "now")
    assert split_line("/missing folder/a.wav") == (["/missing folder/a.wav"], "")
