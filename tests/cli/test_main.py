"""The frame around the commands: help, version, errors, warnings."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from qwen2_audio import __version__
from qwen2_audio.errors import AudioWarning
from tests.cli.conftest import FakeAssistant, Run

COMMAND = [sys.executable, "-m", "qwen2_audio.cli.main"]


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from qwen2_audio.cli.main import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
heavy = {"torch", "numpy", "tokenizers", "soundfile", "huggingface_hub"} & sys.modules.keys()
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in ("chat", "transcribe", "render", "download", "info"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["chat", "transcribe", "render", "download", "info"])
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0 and result.out and not result.err


def test_version(run: Run) -> None:
    assert run("--version").out == f"qwen2-audio {__version__}\n"


def test_a_misspelt_command_or_option_is_named_with_the_nearest(run: Run) -> None:
    result = run("trancribe")
    assert result.code == 2 and not result.out and "transcribe" in result.err
    result = run("chat", "--modle", "x")
    assert result.code == 2 and not result.out and "--model" in result.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["chat", "nothere.wav"], "no such file: nothere.wav"),
        (["chat", "Hi", "--temperature", "-1"], "temperature must be 0 or at least 0.0001"),
        (["chat", "Hi", "--dtype", "int3"], "unknown dtype 'int3'"),
        (["chat", "Hi", "--model", "minni"], "did you mean 'mini'?"),
        (["chat", "Hi", "--device", "meta"], "cannot use the device 'meta'"),
        (["render", "/no/such/recording", "Hi"], "no such file: /no/such/recording"),
        (["render", "/", "Hi"], "is a folder"),
        (["render", ""], "is an empty text"),
        (["chat"], "nothing to say"),
        (["render"], "give either PARTs"),
        (["render", "--base", "Hi", "--system", "x"], "bare prompt"),
        (["render", "--conversation", "nothere.json"], "cannot read nothere.json"),
        (["download", "minni"], "did you mean 'mini'?"),
        (["info", "--model", "minni"], "did you mean 'mini'?"),
        (["info", "--revision", "main"], "give --model, too"),
        (["merge", "x", "y", "--adapter", "--dtype", "bfloat16"], "an adapter is always of float32"),
        (["bench", "--random", "0.5b", "--model", "x"], "--model and --random are two models"),
        (["bench", "--alone", "--compiled"], "--alone leaves out transformers"),
        (["bench", "--quick", "--clip", "5"], "choose other scenarios"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run: Run, arguments: list[str], reason: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and reason in result.err


def test_our_warnings_are_notes(run: Run, assistant: FakeAssistant, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_args: object, **_options: object) -> object:
        warnings.warn("it is long;\nvery long", AudioWarning, stacklevel=1)
        return FakeAssistant(answer=["Yes."]).stream([])

    monkeypatch.setattr(assistant, "stream", stream)
    result = run("chat", "Hi")
    assert (result.code, result.out, result.err) == (0, "Yes.\n", "note: it is long; very long\n")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nIt had less."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line(
    run: Run, assistant: FakeAssistant, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(assistant, "stream", fail)
    result = run("chat", "Hi")
    assert result.code == 2 and result.err.startswith("error: out of memory; try") and result.err.count("\n") == 1


def test_a_file_that_cannot_be_used_is_one_line(
    run: Run, assistant: FakeAssistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing better was said of it."""

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/log.jsonl")

    monkeypatch.setattr(assistant, "stream", fail)
    result = run("chat", "Hi")
    told = "error: cannot use runs/log.jsonl: Permission denied; check the path and its permissions\n"
    assert (result.code, result.err) == (2, told)


@pytest.mark.skipif(os.name == "nt", reason="streams are closed by a shell of POSIX")
@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("transcribe - <&-", 2, "error: -: no recording on stdin; pipe one in, or give a file\n"),
        ("chat <&-", 2, "error: nothing to say: give recordings or text, or one turn a line on stdin\n"),
        ("transcribe nothere.wav 2>&-", 2, ""),
        ("data check nothere.jsonl --model {folder} 2>&-", 2, ""),
        ("render Hi --model {folder} <&- >&- 2>&-", 0, ""),
    ],
)
def test_closed_streams(folder: Path, command: str, code: int, told: str) -> None:
    line = f"{shlex.join(COMMAND)} {command.format(folder=shlex.quote(str(folder)))}"
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", told)


def test_ctrl_c_is_quiet(run: Run, assistant: FakeAssistant) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assistant.interrupt = interrupt
    result = run("chat", "Hi")
    assert (result.code, result.out, result.err) == (130, "Hi\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        arguments = [*COMMAND, "render", "Hi", "--model", str(folder)]
        result = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot write the output") and result.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        arguments = [*COMMAND, "render", "Hi", "--model", str(folder)]
        result = subprocess.run(arguments, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (141, "")
