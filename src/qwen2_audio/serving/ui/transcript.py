"""A long recording being written down: what is there so far, how far it is. Knows nothing of Gradio."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.longform.listening import TRANSCRIBE, TRANSLATE, Question
from qwen2_audio.longform.segments import Segment, cut_short
from qwen2_audio.serving.backend import Backend, ModelCard
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.transcriber import ServedTranscriber
from qwen2_audio.serving.ui.uploads import Opened

Task = Literal["transcribe", "translate"]
_BEAT_SECONDS = 0.5


@dataclass(eq=False)
class Transcript:
    """What has been written of a recording.

    Attributes:
        title: what the file is called, without its suffix.
        seconds: of the recording; as long as it is still being read, a guess.
        problem: why it ended early.
        stopped: whether the visitor ended it.
        told: what is to be said of the recording.
        cut: segments whose text was cut short, perhaps to nothing.
    """

    title: str
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    segments: list[Segment] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""
    stopped: bool = False
    told: list[str] = field(default_factory=list)
    cut: list[Segment] = field(default_factory=list)
    running: asyncio.Task[None] | None = None

    @property
    def share(self) -> float | None:
        """How much is written, 0 to 1; None while nobody knows."""
        if not self.segments or not self.seconds:
            return None
        return min(self.segments[-1].end / self.seconds, 1.0)

    @property
    def remarks(self) -> list[str]:
        """What is not whole: of the recording, of its text."""
        return [*self.told, *cut_short(self.cut)]

    def stop(self) -> None:
        """End it; its work is freed at once."""
        if self.running is not None:
            self.running.cancel()

    async def write(
        self, backend: Backend, card: ModelCard, media: Media, path: Path, task: Task
    ) -> AsyncGenerator[None, None]:
        """Write down the file at `path`; yields twice a second. Closing the iterator, or `stop`, frees the work."""
        work = asyncio.create_task(self._write(backend, card, media, path, task))
        self.running = work
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_BEAT_SECONDS)
                yield
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            self.running = None

    async def _write(self, backend: Backend, card: ModelCard, media: Media, path: Path, task: Task) -> None:
        options = replace(card.defaults, temperature=0.0, repetition_penalty=1.0, max_new_tokens=None)
        question = Question(TRANSCRIBE if task == "transcribe" else TRANSLATE, options)
        transcriber = ServedTranscriber(backend, card, question)
        try:
            async with (
                Opened(path) as file,
                aclosing(self._blocks(media, file, transcriber, os.path.getsize(path))) as blocks,
                aclosing(transcriber.segments(blocks)) as segments,
            ):
                async for transcribed in segments:
                    segment = transcribed.segment
                    if segment.text:
                        self.segments.append(segment)
                    if segment.finish_reason == "length":
                        self.cut.append(segment)
        except asyncio.CancelledError:
            self.stopped = True
            raise
        except Qwen2AudioError as error:
            self.problem = str(error)
        except Exception:  # whatever it is, the visitor gets an answer, and the log the reason
            logging.getLogger(__name__).exception("a transcription failed")
            self.problem = "something went wrong on the server; its log says what"

    async def _blocks(
        self, media: Media, file: Opened, transcriber: ServedTranscriber, size: int
    ) -> AsyncGenerator[NDArray[np.float32], None]:
        """The recording as it is decoded; how long it will be is guessed by how many of its bytes are read."""
        async with aclosing(media.stream_upload(file, self.told)) as blocks:
            async for block in blocks:
                yield block
                self.seconds = transcriber.samples / SAMPLE_RATE * size / max(file.read_bytes, 1)
        self.seconds = transcriber.samples / SAMPLE_RATE
