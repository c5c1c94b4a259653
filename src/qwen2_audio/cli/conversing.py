"""A conversation of many turns, typed at a terminal or piped in line by line."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING

from qwen2_audio.cli.line_editor import line_editor
from qwen2_audio.cli.lines import clean_path, split_line
from qwen2_audio.cli.opening import hear, seconds_of
from qwen2_audio.cli.terminal import note, report, say
from qwen2_audio.errors import Qwen2AudioError, UsageError
from qwen2_audio.processing.conversation import AudioPart, TextPart

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant, Options, ReplyStream
    from qwen2_audio.generation.reply import Reply

HELP = {
    "/audio PATH": "attach a recording (a file or URL); dropping one on the line does the same",
    "/record": "speak: record from the microphone until Enter",
    "/history": "show the conversation so far",
    "/reset": "start afresh, with the same system message",
    "/system TEXT": "start afresh, with this system message",
    "/help": "show this",
    "/exit": "leave; so does Ctrl-D",
}
COMMANDS = tuple(usage.split()[0] for usage in HELP)


class Talk:
    """What a conversation does with each line; it neither reads lines nor knows where they come from.

    Args:
        show: prints an answer and returns it.
        chatty: whether somebody types: it is told what was attached or reset, and Ctrl-C ends the answer, not the command.
    """

    def __init__(
        self,
        assistant: Assistant,
        system: str | None,
        options: Options,
        show: Callable[[ReplyStream], Reply],
        *,
        chatty: bool,
    ) -> None:
        self._assistant = assistant
        self._session = assistant.session(system=system)
        self._options = options
        self._show = show
        self._chatty = chatty
        self._names: list[str] = []  # of the recordings in the conversation
        self._attached: list[tuple[str, AudioPart]] = []

    @property
    def attached(self) -> int:
        """Number of recordings that wait for the next message."""
        return len(self._attached)

    def take(self, line: str) -> bool:
        """Handle one line; False when it asks to leave.

        Raises:
            Qwen2AudioError: the line could not be done; the conversation stays as it was before.
        """
        line = line.strip()
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command in COMMANDS:
            self._command(command, rest.strip())
            return True
        paths, text = split_line(line)
        if not paths and command.startswith("/") and "/" not in command[1:]:
            raise UsageError(_unknown(command))
        for path, part in [(path, hear(path)) for path in paths]:  # all are heard before the first is attached
            self._attach(path, part)
        if text or (self._attached and not paths):
            self._send(text)
        return True

    def finish(self) -> None:
        """Send what is still attached."""
        if self._attached:
            self._send("")

    def _command(self, command: str, rest: str) -> None:
        if command == "/audio":
            if not rest:
                raise UsageError("/audio needs a path or URL: /audio question.wav")
            path = clean_path(rest)
            self._attach(path, hear(path))
        elif command == "/record":
            from qwen2_audio.cli.microphone import record

            self._attach("your recording", hear(record()))
        elif command == "/history":
            self._history()
        elif command == "/help":
            say("\n".join(f"  {usage:<14} {what}" for usage, what in HELP.items()))
        else:
            if command == "/system":
                if not rest:
                    raise UsageError("/system needs a text: /system Answer in French.")
                self._session = self._assistant.session(system=rest)
            self._session.reset()
            self._names, self._attached = [], []
            if self._chatty:
                say("a new conversation")

    def _attach(self, name: str, part: AudioPart) -> None:
        self._attached.append((f"{name}, {seconds_of(part):.1f} s", part))
        if self._chatty:
            say(f"attached {self._attached[-1][0]}; ask about it, or press Enter to send it alone")

    def _send(self, text: str) -> None:
        attached, self._attached = self._attached, []
        items = [part for _, part in attached] + ([TextPart(text)] if text else [])
        try:
            stream = self._session.stream(*items, **self._options)
            with _stopped_by_ctrl_c(stream) if self._chatty else nullcontext():
                reply = self._show(stream)  # a server is asked, and may refuse, only now
        except Qwen2AudioError:
            if attached and self._chatty:
                note(f"attached no longer: {'; '.join(name for name, _ in attached)}")
            raise
        if reply.text or reply.finish_reason != "cancelled":  # else the session has forgotten the turn
            self._names += [name for name, _ in attached]
        if reply.finish_reason == "length" and self._options.get("max_new_tokens") is None:
            note(f"the answer was cut after {reply.completion_tokens} tokens; /reset makes room")
        elif reply.finish_reason == "cancelled":
            say("(stopped)")

    def _history(self) -> None:
        names = iter(self._names)
        for message in self._session.conversation.messages:
            parts = [f"[{next(names)}]" if isinstance(part, AudioPart) else part.text for part in message.parts]
            say(f"{message.role}: {' '.join(parts)}")
        for name, _ in self._attached:
            say(f"attached: [{name}]")


def at_terminal(talk: Talk, model: str) -> None:
    """Go on until Ctrl-D or /exit; errors are shown and the conversation continues."""
    say(f"Talking to {model}. Type a message or drop an audio file here; /help shows what else, Ctrl-D leaves.")
    with line_editor(COMMANDS) as read:
        while True:
            try:
                if not talk.take(read(f"[{talk.attached} attached] > " if talk.attached else "> ")):
                    return
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /exit leaves)")
            except Qwen2AudioError as error:
                report(error)


def piped_lines() -> Iterator[str]:
    """The lines of stdin, of which at least one must not be blank."""
    lines = _stdin()
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UsageError("nothing to say: give recordings or text, or one turn a line on stdin")
    return chain([first], lines)


def through_pipe(talk: Talk, lines: Iterable[str]) -> None:
    """One turn a line; the first error ends the conversation."""
    for line in lines:
        if not talk.take(line):
            return
    talk.finish()


def _stdin() -> Iterator[str]:
    try:
        yield from sys.stdin or ()
    except UnicodeDecodeError:
        raise UsageError("stdin is not text in UTF-8; name recordings by path, or give - for one on stdin") from None


@contextmanager
def _stopped_by_ctrl_c(stream: ReplyStream) -> Iterator[None]:
    """Ctrl-C ends the answer and keeps what was said; a second one does not wait for the model."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _unknown(command: str) -> str:
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"unknown command {command!r}; " + (f"did you mean {near[0]}?" if near else "/help shows what there is")
