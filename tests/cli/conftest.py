"""Running the command line inside the test process, with a model that only repeats what it was told."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qwen2_audio import api
from qwen2_audio.api import Reply
from qwen2_audio.cli.main import main
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart, user_parts
from qwen2_audio.transcription import Transcript
from tests.tiny import sound


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("chat", "Hi", stdin=b"...")`."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(end.value.code or 0), captured.out, captured.err)

    return run


class FakeStream:
    """An answer in pieces; `interrupt` is called after the first one."""

    def __init__(self, pieces: Sequence[str], interrupt: Callable[[], None] | None = None) -> None:
        self._pieces = pieces
        self._interrupt = interrupt
        self._said: list[str] = []
        self._cancelled = False

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if self._cancelled:
                return
            self._said.append(piece)
            yield piece
            if self._interrupt:
                self._interrupt()

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def reply(self) -> Reply:
        return Reply("".join(self._said), "cancelled" if self._cancelled else "stop", (1, 2), 7)

    def run(self) -> Reply:
        for _ in self:
            pass
        return self.reply


@dataclass
class FakeAssistant:
    """Answers with a description of the message: text as it is, recordings as [SECONDS]."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    answer: Sequence[str] | None = None
    interrupt: Callable[[], None] | None = None

    def stream(self, message: Any, *, system: str | None = None, **options: Any) -> FakeStream:
        self.calls.append({"system": system, **options})
        return FakeStream(self.answer if self.answer is not None else described(message), self.interrupt)

    def session(self, *, system: str | None = None) -> FakeSession:
        return FakeSession(self, system)

    def transcribe_many(self, audios: Sequence[Any], **options: Any) -> list[Reply]:
        self.calls.append({"together": len(audios), **options})
        if any(len(samples) < 1600 for samples, _ in audios):
            raise AudioError("the recording is too short")
        return [transcript(len(samples) / rate) for samples, rate in audios]

    def transcribe_stream(self, audio: str, **options: Any) -> Iterator[Segment]:
        self.calls.append({"streamed": audio, **options})
        samples = load_audio(audio)
        yield from transcript(len(samples) / SAMPLE_RATE).segments


def transcript(seconds: float) -> Transcript:
    """Says how long a recording is, in two segments where that is over a minute."""
    if seconds > 60:
        return Transcript.of([Segment(0.5, 1.5, "heard"), Segment(2.0, seconds, f"{seconds:g} s")])
    return Transcript.of([Segment(0.0, seconds, f"heard {seconds:g} s", "stop", (1,), 2)])


class FakeSession:
    """Numbers its turns, so that a forgotten one shows."""

    def __init__(self, assistant: FakeAssistant, system: str | None) -> None:
        self._assistant = assistant
        self._system = system
        self.reset()

    def reset(self) -> None:
        self.conversation = Conversation().system(self._system) if self._system else Conversation()
        self._turns = 0

    def stream(self, *message: Any, **options: Any) -> FakeStream:
        self._turns += 1
        pieces = [f"{self._turns}: ", *described(message)]
        self.conversation = self.conversation.add("user", *user_parts(message)).assistant("".join(pieces))
        self._assistant.calls.append({"system": self._system, **options})
        return FakeStream(pieces, self._assistant.interrupt)


def described(message: Sequence[AudioPart | TextPart]) -> list[str]:
    """The parts of a message as words."""
    return [
        part.text if isinstance(part, TextPart) else f"[{len(part.source[0]) / SAMPLE_RATE:g} s]"  # type: ignore[index,arg-type]
        for part in message
    ]


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeAssistant:
    """What every command opens instead of a model."""
    fake = FakeAssistant()
    monkeypatch.setattr(api, "load", lambda *_args, **_options: fake)
    monkeypatch.setenv("QWEN2_AUDIO_MODEL", str(tmp_path))
    return fake


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Half a second, in a folder whose name has a space."""
    path = tmp_path / "my sounds" / "half.wav"
    path.parent.mkdir()
    soundfile.write(path, sound(0.5), SAMPLE_RATE)
    return path
