"""`qwen2-audio transcribe`: what is said in recordings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import checked, hear, open_assistant, seconds_of
from qwen2_audio.cli.terminal import FAILED, note, report
from qwen2_audio.errors import AudioError, ContextLengthError, Qwen2AudioError

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant, Options
    from qwen2_audio.generation.reply import Reply
    from qwen2_audio.processing.conversation import AudioPart

    Outcome: TypeAlias = "tuple[str, AudioPart | None, Reply | Qwen2AudioError]"
    """A file, what was heard in it, and its text or what went wrong."""


def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Recordings: files, URLs, - for stdin.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings worked on together.")] = 8,
    as_json: opt.Json = False,
    model: opt.Model = opt.DEFAULT_MODEL,
    adapter: opt.Adapter = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    revision: opt.Revision = None,
    offline: opt.Offline = False,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
) -> None:
    """Write down what is said.

    One line a recording, with the file's name and a tab in front when there are several. A recording that cannot be
    read is reported and the others go on; the exit code is then 2.
    """
    options = checked(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "stop": stop or None,
        }
    )
    bar = _Bar(len(files))

    @cache  # the model is not loaded when no file can be read
    def assistant() -> Assistant:
        opened = open_assistant(model, device=device, dtype=dtype, revision=revision, offline=offline, adapter=adapter)
        bar.start()
        return opened

    failed = False
    try:
        for file, heard, outcome in _outcomes(files, batch_size, assistant, options):
            bar.stop()
            if heard is None or isinstance(outcome, Qwen2AudioError):
                report(str(outcome) if file in str(outcome) else f"{file}: {outcome}")
                failed = True
            else:
                _print(file, heard, outcome, named=len(files) > 1, as_json=as_json)
                if outcome.finish_reason == "length" and max_new_tokens is None:
                    note(f"{file}: the text was cut after {len(outcome.tokens)} tokens")
            bar.advance()
    finally:
        bar.stop()
    if failed:
        raise typer.Exit(FAILED)


def _outcomes(
    files: Sequence[str], batch_size: int, assistant: Callable[[], Assistant], options: Options
) -> Iterator[Outcome]:
    waiting = iter(files)
    while batch := list(islice(waiting, batch_size)):
        sounds = [_heard(file) for file in batch]
        good = [sound for sound in sounds if not isinstance(sound, AudioError)]
        replies = iter(_replies(assistant, good, options) if good else ())
        for file, sound in zip(batch, sounds, strict=True):
            yield (file, None, sound) if isinstance(sound, AudioError) else (file, sound, next(replies))


def _heard(file: str) -> AudioPart | AudioError:
    try:
        return hear(file)
    except AudioError as error:
        return error


def _replies(
    assistant: Callable[[], Assistant], sounds: list[AudioPart], options: Options
) -> list[Reply | Qwen2AudioError]:
    """Texts of all recordings; when one of them spoils the batch, each is tried alone."""
    try:
        return [*assistant().transcribe_many([sound.source for sound in sounds], **options)]
    except (AudioError, ContextLengthError) as error:
        if len(sounds) == 1:
            return [error]
    return [reply for sound in sounds for reply in _replies(assistant, [sound], options)]


def _print(file: str, heard: AudioPart, reply: Reply, *, named: bool, as_json: bool) -> None:
    if as_json:
        line = {"file": file, "text": reply.text, "duration": round(seconds_of(heard), 3)}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        print(f"{file}\t{reply.text}" if named else reply.text, flush=True)


class _Bar:
    """A progress bar on stderr, if somebody is looking; it must be stopped before something is printed."""

    def __init__(self, total: int) -> None:
        self._started = False
        self._progress = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._task = self._progress.add_task("transcribing", total=total)

    def start(self) -> None:
        self._started = True
        if self._progress:
            self._progress.start()

    def stop(self) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self) -> None:
        """One more is done; the bar goes on if it ever began."""
        if self._progress:
            self._progress.advance(self._task)
            if self._started:
                self._progress.start()
