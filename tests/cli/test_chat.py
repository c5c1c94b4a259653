"""`chat`: one answer, turns through a pipe, and a conversation at the terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen2_audio.cli import conversing
from qwen2_audio.cli.chat import print_stream
from qwen2_audio.cli.line_editor import _completion
from qwen2_audio.cli.lines import split_line
from qwen2_audio.errors import ContextLengthError, ServerError
from tests.cli.conftest import FakeAssistant, FakeStream, Run


def test_parts_in_order_and_the_answer_on_stdout(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("chat", wav, "What is ", wav, "this?", "--system", "Be brief.")
    assert (result.code, result.out, result.err) == (0, "[0.5 s]What is [0.5 s]this?\n", "")
    assert assistant.calls[0]["system"] == "Be brief."


def test_a_recording_from_stdin(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    assert run("chat", "-", "Hm?", stdin=wav.read_bytes()).out == "[0.5 s]Hm?\n"


@pytest.mark.parametrize("pieces", [[], [""], ["[bold]no[/bold] ", "markup :smile:"], ["naïve ", "你好"]])
def test_answers_come_out_as_they_are(run: Run, assistant: FakeAssistant, pieces: list[str]) -> None:
    assistant.answer = pieces
    assert run("chat", "Hi").out == "".join(pieces) + "\n"


def test_options_reach_the_model(run: Run, assistant: FakeAssistant) -> None:
    words = "--max-new-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 3 --min-p 0.1 --repetition-penalty 1.2 --seed 4"
    run("chat", "Hi", *words.split(), "--stop", "a", "--stop", "b c")
    assert assistant.calls == [
        {
            "system": None,
            "max_new_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "seed": 4,
            "stop": ["a", "b c"],
        }
    ]


def test_json(run: Run, assistant: FakeAssistant, tmp_path: Path) -> None:
    result = run("chat", "你好\n", "--json")
    assert result.out.count("\n") == 1 and "你好" in result.out
    assert json.loads(result.out) == {
        "text": "你好\n",
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "model": str(tmp_path),
    }


def test_lines_of_stdin_are_turns_of_one_conversation(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    lines = f"\nHi\n'{wav}'\n\n\n'{wav}' What is it?\nWhat is it? '{wav}'\n/reset\nAgain\n/exit\nunheard\n"
    result = run("chat", stdin=lines.encode())
    turns = ["1: Hi", "2: [0.5 s]", "3: [0.5 s]What is it?", "4: [0.5 s]What is it?", "1: Again"]
    assert (result.code, result.out, result.err) == (0, "\n".join(turns) + "\n", "")


def test_a_recording_on_the_last_line_is_sent(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    assert run("chat", stdin=f"{wav}\n/audio {wav}".encode()).out == "1: [0.5 s][0.5 s]\n"


def test_turns_as_json(run: Run, assistant: FakeAssistant) -> None:
    result = run("chat", "--json", stdin=b"a\nb\n")
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["1: a", "2: b"]


def test_the_first_error_ends_a_piped_conversation(run: Run, assistant: FakeAssistant) -> None:
    result = run("chat", stdin=b"a\nnothere.wav\nb\n")
    assert (result.code, result.out) == (2, "1: a\n")
    assert result.err == "error: no such file: nothere.wav; check the path\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_ends_a_piped_conversation(run: Run, assistant: FakeAssistant, options: list[str]) -> None:
    assistant.interrupt = lambda: signal.raise_signal(signal.SIGINT)
    result = run("chat", *options, stdin=b"a\nb\n")
    assert result.code == 130 and "2: " not in result.out and not result.err
    assert len(assistant.calls) == 1


@pytest.mark.parametrize("stdin", [b"", b"\n \n"])
def test_silence_is_an_error(run: Run, assistant: FakeAssistant, stdin: bytes) -> None:
    assert run("chat", stdin=stdin).code == 2


def test_stdin_that_is_no_text(run: Run, assistant: FakeAssistant) -> None:
    result = run("chat", stdin=b"\xff\xfe\x00")
    assert result.code == 2 and "UTF-8" in result.err and result.err.count("\n") == 1


class Terminal:
    """Somebody who types `lines`, or presses Ctrl-C (an exception) instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def types(self, assistant: FakeAssistant, *lines: str | type[BaseException]) -> tuple[str, str]:
        """stdout and stderr of the conversation."""
        typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

        def read() -> str:
            line = next(typed)
            if isinstance(line, str):
                return line
            raise line

        self._monkeypatch.setattr("builtins.input", read)
        talk = conversing.Talk(assistant, None, {}, print_stream, chatty=True)  # type: ignore[arg-type]
        conversing.at_terminal(talk, "mini")
        captured = self._capsys.readouterr()
        return captured.out, captured.err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_errors_do_not_end_a_conversation(terminal: Terminal, assistant: FakeAssistant) -> None:
    out, err = terminal.types(assistant, "a", "nothere.wav", "/histroy", "/nonsense", "/audio", "/system", "b")
    assert out == "1: a\n2: b\n"
    for reason in (
        "no such file: nothere.wav",
        "did you mean /history?",
        "/help shows",
        "/audio needs",
        "/system needs",
    ):
        assert reason in err


def test_attaching_and_speaking(terminal: Terminal, assistant: FakeAssistant, wav: Path) -> None:
    escaped = str(wav).replace(" ", "\\ ")
    out, err = terminal.types(assistant, escaped, "", f"/audio {wav}", f'"{wav}"', "Which is louder?", "/history")
    assert out == "1: [0.5 s]\n2: [0.5 s][0.5 s]Which is louder?\n"
    assert "[1 attached] > " in err and "[2 attached] > " in err
    assert f"user: [{wav}, 0.5 s] [{wav}, 0.5 s] Which is louder?\n" in err


def test_system_and_reset_start_afresh(terminal: Terminal, assistant: FakeAssistant) -> None:
    out, _ = terminal.types(assistant, "a", "/system Be a pirate.", "b", "c", "/reset", "d", "/exit", "unheard")
    assert out == "1: a\n1: b\n2: c\n1: d\n"
    assert [call["system"] for call in assistant.calls] == [None, *["Be a pirate."] * 3]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(terminal: Terminal, assistant: FakeAssistant) -> None:
    assistant.interrupt = lambda: signal.raise_signal(signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    out, err = terminal.types(assistant, "a long story", KeyboardInterrupt, "b")
    assert out == "1: \n2: \n" and err.count("(stopped)") == 2 and "leaves)" in err
    assert signal.getsignal(signal.SIGINT) is before


def test_recording_without_sounddevice(
    terminal: Terminal, assistant: FakeAssistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    _, err = terminal.types(assistant, "/record")
    assert "error: /record needs the package sounddevice: pip install sounddevice\n" in err


def test_completion(wav: Path) -> None:
    commands = ("/help", "/history", "/audio")
    assert [_completion("/hi", index, commands) for index in (0, 1)] == ["/history", None]
    assert _completion(str(wav)[:-3], 0, commands) == str(wav)
    assert _completion(f"/audio {wav.parent}", 0, commands) == f"/audio {wav.parent}/"


@pytest.mark.skipif(os.sep != "/", reason="elsewhere a backslash is no escape")
def test_a_completed_path_is_a_recording_with_text_behind_it(wav: Path, tmp_path: Path) -> None:
    written = _completion(f"{tmp_path}/my", 0, ())
    assert written == f"{tmp_path}/my\\ sounds/"
    written = _completion(f"{written}ha", 0, ())
    assert written == f"{tmp_path}/my\\ sounds/half.wav"
    assert split_line(f"{written} What is it?") == ([str(wav)], "What is it?")
    odd = wav.with_name('it\'s "so\\so".wav')
    odd.write_bytes(wav.read_bytes())
    written = _completion(f"{tmp_path}/my\\ sounds/it", 0, ())
    assert split_line(f"{written} What is it?") == ([str(odd)], "What is it?")


def test_recordings_of_a_turn_that_failed_or_was_forgotten(
    terminal: Terminal, assistant: FakeAssistant, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = assistant.session()
    answer = session.stream
    outcomes = iter(["too long", "refused", "cancelled", "answered"])

    def stream(*message: Any, **options: Any) -> Any:
        outcome = next(outcomes)
        if outcome == "too long":
            raise ContextLengthError("the prompt is too long")
        if outcome == "refused":  # by a server, which is asked when its answer is read

            def refuse() -> None:
                raise ServerError("the server has too much to do")

            return FakeStream(["unsaid"], refuse)
        if outcome == "cancelled":  # before its first token: the session keeps nothing of it
            silent = FakeStream([])
            silent.cancel()
            return silent
        return answer(*message, **options)

    monkeypatch.setattr(session, "stream", stream)
    monkeypatch.setattr(assistant, "session", lambda **_: session)
    other = wav.with_name("other.wav")
    other.write_bytes(wav.read_bytes())
    typed = (f"'{wav}' long", f"'{wav}' refused", f"'{wav}' forgotten", f"'{other}' kept", "/history")
    _, err = terminal.types(assistant, *typed)
    assert err.count(f"note: attached no longer: {wav}, 0.5 s\n") == 2
    assert f"user: [{other}, 0.5 s] kept\n" in err


def test_all_recordings_of_a_line_or_none(terminal: Terminal, assistant: FakeAssistant, wav: Path) -> None:
    out, _ = terminal.types(assistant, f"'{wav}' http://127.0.0.1:9/nothing.wav", "b")
    assert out == "1: b\n"
