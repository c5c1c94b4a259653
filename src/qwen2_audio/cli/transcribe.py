"""`qwen2-audio transcribe`: what is said in recordings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.listening_bar import ListeningBar
from qwen2_audio.cli.opening import checked, hear, open_assistant, seconds_of
from qwen2_audio.cli.recordings import Recording, find_recordings
from qwen2_audio.cli.terminal import FAILED, note, report
from qwen2_audio.cli.transcripts import Transcripts
from qwen2_audio.errors import AudioError, ContextLengthError, Qwen2AudioError, UsageError
from qwen2_audio.longform.segments import cut_short

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant, Options
    from qwen2_audio.longform.segments import Segment
    from qwen2_audio.processing.conversation import AudioPart, AudioSource

LONG_SECONDS = 60.0
"""Recordings from this length on are worked on alone, decoded as they are heard."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What became of a recording."""

    recording: Recording
    segments: Sequence[Segment]
    seconds: float

    @property
    def source(self) -> str:
        """Where it came from."""
        return self.recording.source


@dataclass(frozen=True, slots=True)
class _Failed:
    source: str
    error: Qwen2AudioError


def transcribe(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Recordings: files, folders, patterns, URLs, - for stdin.")
    ],
    format: Annotated[str, typer.Option("--format", "-f", help="txt, srt, vtt, tsv, json, or all of them.")] = "txt",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", help="Write a file for each recording; done ones are skipped.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do those again that are done.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Short recordings worked on together.")] = 8,
    as_json: opt.Json = False,
    model: opt.Model = opt.DEFAULT_MODEL,
    adapter: opt.Adapter = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    quantize: opt.Quantize = "none",
    revision: opt.Revision = None,
    offline: opt.Offline = False,
    api_key_env: opt.ApiKeyEnv = None,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
) -> None:
    """Write down what is said, in recordings of any length.

    One line a recording, with the file's name and a tab in front when there are several; or subtitles and tables, with
    --output-dir in files. A recording that cannot be read is reported and the others go on; the exit code is then 2.
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
    if as_json and (output_dir or format != "txt"):
        raise UsageError("--json prints a line for each recording; use --format json with --output-dir for files")
    opening = partial(open_assistant, model, device=device, dtype=dtype, quantize=quantize, adapter=adapter)
    transcripts = Transcripts.of(format, output_dir, overwrite=overwrite)
    found = find_recordings(files)
    opened = partial(opening, revision=revision, offline=offline, key_variable=api_key_env)
    work = _Work(transcripts, found, opened, as_json=as_json)
    if work.run(batch_size, options):
        raise typer.Exit(FAILED)


class _Work:
    """All recordings of one command."""

    def __init__(
        self,
        transcripts: Transcripts,
        found: Sequence[Recording | AudioError],
        opening: Callable[[], Assistant],
        *,
        as_json: bool,
    ) -> None:
        recordings = [item for item in found if isinstance(item, Recording)]
        if len(found) > 1 and transcripts.folder is None and transcripts.formats != ("txt",):
            raise UsageError(
                f"there are {len(found)} recordings, of which {transcripts.formats[0]} makes a file each; give --output-dir"
            )
        transcripts.refuse_collisions(recordings)
        self._transcripts, self._opening, self._as_json = transcripts, opening, as_json
        self._named = len(found) > 1
        self._waiting = [item for item in found if isinstance(item, AudioError) or not transcripts.done(item)]
        self._skipped = len(found) - len(self._waiting)
        known = sum(item.seconds or 0.0 for item in self._waiting if isinstance(item, Recording))
        self._bar = ListeningBar(len(self._waiting), known)

    @cached_property
    def _assistant(self) -> Assistant:
        """The model, not loaded when no file can be read."""
        opened = self._opening()
        self._bar.start()
        return opened

    def run(self, batch_size: int, options: Options) -> bool:
        """Go through all; returns whether one failed."""
        failed = False
        try:
            for outcome in self._outcomes(batch_size, options):
                self._bar.stop()
                try:
                    if isinstance(outcome, _Failed):
                        raise outcome.error
                    self._deliver(outcome)
                    self._note_if_cut(outcome, options)
                except Qwen2AudioError as error:
                    message = str(error)
                    report(
                        message if not outcome.source or outcome.source in message else f"{outcome.source}: {message}"
                    )
                    failed = True
                self._bar.finished()
        finally:
            self._bar.stop()
        if self._skipped:
            note(
                f"{self._skipped} of {self._skipped + len(self._waiting)} were done already; --overwrite does them again"
            )
        return failed

    def _outcomes(self, batch_size: int, options: Options) -> Iterator[_Heard | _Failed]:
        for long, items in groupby(self._waiting, _is_long):
            waiting = iter(items)
            while batch := list(islice(waiting, 1 if long else batch_size)):
                if long:
                    yield self._streamed(batch[0], options)
                else:
                    yield from self._together(batch, options)

    def _streamed(
        self, recording: Recording | AudioError, options: Options, decoded: AudioSource | None = None
    ) -> _Heard | _Failed:
        """A long recording, segment by segment; decoded already where only that told its length."""
        if isinstance(recording, AudioError):
            return _Failed("", recording)
        source = recording.source if decoded is None else decoded
        segments: list[Segment] = []
        seconds, reached = recording.seconds or 0.0, 0.0
        try:
            for segment in self._assistant.transcribe_stream(source, **options):
                segments.append(segment)
                self._bar.heard(segment.end - reached)
                reached = segment.end
        except (AudioError, ContextLengthError) as error:
            return _Failed(recording.source, error)
        self._bar.heard(max(seconds - reached, 0.0))
        return _Heard(recording, segments, max(seconds, reached))

    def _together(self, batch: Sequence[Recording | AudioError], options: Options) -> Iterator[_Heard | _Failed]:
        """Recordings that should be short, decoded and transcribed together; one that turns out long is streamed."""
        sounds = [_decoded(item) for item in batch]
        good = [sound for sound in sounds if not isinstance(sound, AudioError) and seconds_of(sound) < LONG_SECONDS]
        answers = iter(self._segments(good, options) if good else ())
        for item, sound in zip(batch, sounds, strict=True):
            if isinstance(item, AudioError):
                yield _Failed("", item)
                continue
            if isinstance(sound, AudioError):
                yield _Failed(item.source, sound)
                continue
            seconds = seconds_of(sound)
            if seconds >= LONG_SECONDS:
                self._bar.more(seconds - (item.seconds or 0.0))
                yield self._streamed(replace(item, seconds=seconds), options, sound.source)
                continue
            answer = next(answers)
            if isinstance(answer, Qwen2AudioError):
                yield _Failed(item.source, answer)
                continue
            if item.seconds is None:
                self._bar.more(seconds)
            self._bar.heard(seconds)
            yield _Heard(item, answer, seconds)

    def _segments(self, sounds: list[AudioPart], options: Options) -> list[Sequence[Segment] | Qwen2AudioError]:
        """What was said in each; when one of them spoils the batch, each is tried alone."""
        try:
            replies = self._assistant.transcribe_many([sound.source for sound in sounds], **options)
            return [reply.segments for reply in replies]
        except (AudioError, ContextLengthError) as error:
            if len(sounds) == 1:
                return [error]
        return [found for sound in sounds for found in self._segments([sound], options)]

    def _deliver(self, heard: _Heard) -> None:
        """Write or print what was said."""
        from qwen2_audio.longform.segments import join_texts
        from qwen2_audio.longform.subtitles import write

        formats = self._transcripts.formats
        text = join_texts(segment.text for segment in heard.segments)
        if self._transcripts.folder is not None:
            self._transcripts.write(heard.recording, heard.segments, heard.seconds)
        elif self._as_json:
            line = {"file": heard.source, "text": text, "duration": round(heard.seconds, 3)}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif formats == ("txt",):
            print(f"{heard.source}\t{text}" if self._named else text, flush=True)
        else:
            print(write(heard.segments, formats[0], duration=heard.seconds), end="", flush=True)

    @staticmethod
    def _note_if_cut(heard: _Heard, options: Options) -> None:
        for said in cut_short(heard.segments) if options.get("max_new_tokens") is None else ():
            note(f"{heard.recording.source}: {said}")


def _is_long(item: Recording | AudioError) -> bool:
    return isinstance(item, Recording) and item.seconds is not None and item.seconds >= LONG_SECONDS


def _decoded(item: Recording | AudioError) -> AudioPart | AudioError:
    if isinstance(item, AudioError):
        return item
    try:
        return hear(item.source)
    except AudioError as error:
        return error
