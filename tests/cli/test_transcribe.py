"""`transcribe`: texts on stdout, everything else on stderr, one bad file does not spoil the others."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qwen2_audio import api
from qwen2_audio.cli.listening_bar import ListeningBar
from qwen2_audio.cli.recordings import Recording, find_recordings
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.longform.segments import Segment
from qwen2_audio.transcription import Transcript
from tests.cli.conftest import FakeAssistant, Run
from tests.tiny import sound


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    """A recording that can be read, but that the model refuses."""
    path = tmp_path / "blip.wav"
    soundfile.write(path, sound(0.05), SAMPLE_RATE)
    return path


def test_one_file_is_its_text_alone(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav)
    assert (result.code, result.out, result.err) == (0, "heard 0.5 s\n", "")
    assert assistant.calls[0]["temperature"] is None  # the default of `transcribe_many` holds


def test_several_files_have_their_names_in_front(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav, wav, wav, "--batch-size", "2", "--temperature", "0.5")
    assert result.out == f"{wav}\theard 0.5 s\n" * 3
    assert [call["together"] for call in assistant.calls] == [2, 1]
    assert assistant.calls[0]["temperature"] == 0.5


def test_bad_files_are_reported_and_the_others_go_on(run: Run, assistant: FakeAssistant, wav: Path, blip: Path) -> None:
    result = run("transcribe", wav, "nothere.wav", blip, wav)
    assert (result.code, result.out) == (2, f"{wav}\theard 0.5 s\n" * 2)
    assert result.err.splitlines() == [
        "error: no such file: nothere.wav; check the path",
        f"error: {blip}: the recording is too short",
    ]


def test_json_lines(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav, "nothere.wav", wav, "--json")
    expected = {"file": str(wav), "text": "heard 0.5 s", "duration": 0.5}
    assert [json.loads(line) for line in result.out.splitlines()] == [expected, expected]
    assert result.code == 2


def test_stdin(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    assert run("transcribe", "-", stdin=wav.read_bytes()).out == "heard 0.5 s\n"


def test_no_model_is_loaded_for_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(api, "load")
    result = run("transcribe", "nothere.wav", "--model", tmp_path)
    assert (result.code, result.out) == (2, "")


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """A folder with recordings at two depths, and something else."""
    folder = tmp_path / "talks"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "b.wav", sound(0.5), SAMPLE_RATE)
    soundfile.write(folder / "a.flac", sound(0.25), SAMPLE_RATE)
    soundfile.write(folder / "deep" / "long.WAV", sound(61.0), SAMPLE_RATE)
    (folder / "notes.txt").write_text("no sound")
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders_become_files(run: Run, assistant: FakeAssistant, talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("transcribe", talks, "--output-dir", out, "--format", "srt")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert files_in(out) == ["a.srt", "b.srt", "deep/long.srt"]
    assert (out / "a.srt").read_text() == "1\n00:00:00,000 --> 00:00:00,250\nheard 0.25 s\n\n"
    assert [call.get("together") for call in assistant.calls] == [2, None]
    assert assistant.calls[1]["streamed"] == str(talks / "deep" / "long.WAV")


def test_what_is_done_is_skipped(run: Run, assistant: FakeAssistant, talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("transcribe", talks / "*.*", "--output-dir", out)
    assert run(*command).code == 0 and files_in(out) == ["a.txt", "b.txt"]
    (out / "a.txt").write_text("by hand")
    (out / "b.txt").unlink()
    again = run(*command)
    assert (again.code, again.err) == (0, "note: 1 of 2 were done already; --overwrite does them again\n")
    assert (out / "a.txt").read_text() == "by hand" and (out / "b.txt").read_text() == "heard 0.5 s\n"
    assert run(*command, "--overwrite").code == 0
    assert (out / "a.txt").read_text() == "heard 0.25 s\n"


def test_all_formats(run: Run, assistant: FakeAssistant, wav: Path, tmp_path: Path) -> None:
    assert run("transcribe", wav, "-f", "all", "-o", tmp_path / "out").code == 0
    assert files_in(tmp_path / "out") == ["half.json", "half.srt", "half.tsv", "half.txt", "half.vtt"]
    assert json.loads((tmp_path / "out" / "half.json").read_text())["duration"] == 0.5


def test_one_file_to_stdout(run: Run, assistant: FakeAssistant, talks: Path) -> None:
    long = talks / "deep" / "long.WAV"
    assert run("transcribe", long).out == "heard 61 s\n"
    assert run("transcribe", long, "--format", "tsv").out == "start\tend\ttext\n500\t1500\theard\n2000\t61000\t61 s\n"


def test_what_turns_out_long_is_streamed_in_its_place(
    run: Run, assistant: FakeAssistant, talks: Path, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stdin says nothing of its length before it is decoded."""
    shown: list[float] = []
    monkeypatch.setattr(ListeningBar, "more", lambda _bar, seconds: shown.append(seconds))
    monkeypatch.setattr(ListeningBar, "heard", lambda _bar, seconds: shown.append(seconds))
    long = (talks / "deep" / "long.WAV").read_bytes()
    result = run("transcribe", wav, "-", wav, stdin=long)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{wav}\theard 0.5 s\n-\theard 61 s\n{wav}\theard 0.5 s\n"
    assert [call.get("together") for call in assistant.calls] == [2, None] and "streamed" in assistant.calls[1]
    assert shown == [0.5, 61.0, 1.5, 59.5, 0.0, 0.5]


def test_failures_leave_no_files(run: Run, assistant: FakeAssistant, talks: Path, blip: Path, tmp_path: Path) -> None:
    cut = talks / "deep" / "long.WAV"
    cut.write_bytes(cut.read_bytes()[:-400_000])
    result = run("transcribe", talks, blip, talks / "no*.mp3", tmp_path / "out", "-o", tmp_path / "out")
    assert result.code == 2
    errors = result.err.splitlines()
    assert len(errors) == 4 and "cut short" in errors[0] and "too short" in errors[1]
    assert "no recording matches" in errors[2] and "no such file" in errors[3]
    assert files_in(tmp_path / "out") == ["a.txt", "b.txt"]


def test_a_transcript_that_cannot_be_written_does_not_keep_the_others(
    run: Run, assistant: FakeAssistant, talks: Path, tmp_path: Path
) -> None:
    out, name = tmp_path / "out", "谈" * 83  # 249 bytes: the name of the transcript just fits
    (talks / "b.wav").rename(talks / f"{name}.wav")
    out.mkdir()
    (out / "deep").write_text("no folder")
    result = run("transcribe", talks, "-o", out)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "long.WAV: cannot write " in result.err and "give another folder" in result.err
    assert files_in(out) == ["a.txt", "deep", f"{name}.txt"]


@pytest.mark.parametrize("missing", ["talks/", "", "talk.wav/"])
def test_what_is_no_file_is_said_whatever_its_spelling(
    run: Run, assistant: FakeAssistant, tmp_path: Path, missing: str
) -> None:
    result = run("transcribe", missing, "-f", "srt", "-o", tmp_path / "out")
    assert result.code == 2 and result.err.count("\n") == 1 and result.err.startswith("error: ")


def test_an_interrupted_write_leaves_what_was_there(
    run: Run, assistant: FakeAssistant, wav: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("transcribe", wav, "-o", out)

    def half(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text[:3].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    assert run("transcribe", wav, "-o", out, "--overwrite").code == 130
    assert (out / "half.txt").read_text() == "heard 0.5 s\n"


def test_a_text_that_was_cut_is_said(
    run: Run, assistant: FakeAssistant, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Transcript.of([Segment(1.5, 2.0, "so", "length")])
    monkeypatch.setattr(FakeAssistant, "transcribe_many", lambda *_args, **_options: [lost])
    assert f"{wav}: the model lost the thread and was cut short at 1.5 s" in run("transcribe", wav).err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--format", "docx"), "--format must be one of txt, srt"),
        (("--format", "all"), "give --output-dir"),
        (("--overwrite",), "give --output-dir"),
        (("--json", "--format", "srt"), "--json prints"),
        (("{talks}/b.wav", "--format", "vtt"), "give --output-dir"),
    ],
)
def test_options_that_make_no_sense(run: Run, wav: Path, talks: Path, arguments: tuple[str, ...], word: str) -> None:
    result = run("transcribe", wav, *(argument.format(talks=talks) for argument in arguments))
    assert result.code == 2 and word in result.err


def test_a_folder_that_cannot_be_is_said_before_the_work(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav, "-o", wav / "out")
    assert result.code == 2 and f"cannot write into {wav / 'out'}" in result.err


def test_an_address_names_no_place_elsewhere() -> None:
    for path in ("..%2F..%2Fx.wav", "%2Ftmp%2Fx.wav", "a/x.wav"):
        [found] = find_recordings([f"https://host/{path}"])
        assert not isinstance(found, Exception) and found.name == Path("x.wav")


@pytest.mark.parametrize("address", ["http://[host]/x.wav", "http://127.0.0.1:9/.", "http://127.0.0.1:9/.."])
def test_an_address_without_a_name_or_sense(
    run: Run, assistant: FakeAssistant, wav: Path, tmp_path: Path, address: str
) -> None:
    result = run("transcribe", address, wav, "-o", tmp_path)
    assert result.code == 2 and result.err.startswith(f"error: cannot fetch {address}: ")
    assert (tmp_path / wav.name).with_suffix(".txt").read_text() == "heard 0.5 s\n"


def test_a_folder_that_cannot_be_looked_into(talks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = os.scandir

    def refuse(folder: str) -> Any:
        if folder == str(talks / "deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return look(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    error, *found = find_recordings([str(talks)])
    assert str(error) == f"cannot look into {talks / 'deep'}: Permission denied; check its permissions"
    assert [item.source for item in found if isinstance(item, Recording)] == [
        str(talks / name) for name in ("a.flac", "b.wav")
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_to_folders_are_followed_but_not_in_circles(talks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.wav").touch()
    (talks / "linked").symlink_to(other)
    (other / "back").symlink_to(talks)
    names = [item.name for item in find_recordings([str(talks)]) if isinstance(item, Recording)]
    assert names == [Path("a.flac"), Path("b.wav"), Path("deep/long.WAV"), Path("linked/c.wav")]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_to_itself_fails_alone(run: Run, assistant: FakeAssistant, talks: Path) -> None:
    (talks / "loop.wav").symlink_to("loop.wav")
    result = run("transcribe", talks)
    assert result.code == 2 and result.out.count("\n") == 3
    assert result.err.startswith(f"error: cannot read {talks / 'loop.wav'}: ") and result.err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_read_once(run: Run, assistant: FakeAssistant, wav: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(wav.read_bytes()))
    writer.start()
    result = run("transcribe", pipe)
    writer.join(10)
    assert (result.code, result.out) == (0, "heard 0.5 s\n")


def test_two_recordings_of_one_name(run: Run, talks: Path, wav: Path, tmp_path: Path) -> None:
    (talks / "half.mp3").write_bytes(b"")
    result = run("transcribe", wav, talks / "half.mp3", "-o", tmp_path / "out")
    assert result.code == 2 and "would both become" in result.err


def test_a_file_is_needed(run: Run) -> None:
    assert run("transcribe").code == 2
