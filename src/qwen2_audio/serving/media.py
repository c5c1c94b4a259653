"""Recordings that strangers send: base64, addresses and uploads to decoded clips, under all limits."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError, TooLargeError, TooLongError
from qwen2_audio.processing.audio import read_data_url
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.serving.decoders import DecoderPool
from qwen2_audio.serving.fetch import Fetcher
from qwen2_audio.serving.formats import check_format
from qwen2_audio.serving.settings import MIB, Settings

_PIECE = 64 * 1024
_DATA_URL_HEAD = 256
_MOST_FETCHED = 16
"""Recordings that are being fetched, and as many that lie fetched until they are decoded; more wait."""
_MOST_OF_A_REQUEST = 4
"""Those that are fetched for one request at a time: addresses that do not answer must not take all places."""


class Upload(Protocol):
    """A file that came with a form; starlette's `UploadFile` is one."""

    async def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A recording in base64, and what its sender calls its format ("wav", "mp3", ...); "" is not said."""

    data: str = field(repr=False)
    format: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A recording at an http(s) address, or in a data URL."""

    url: str


class Media:
    """Decodes recordings off the event loop, in processes of its own, under the limits of the settings.

    Sources of the parts returned are (float32 [samples], 16000). Cancelling the task that waits ends the work at once.

    Args:
        fetcher: what fetches addresses; for tests.
    """

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None) -> None:
        self._settings = settings
        self._fetcher = fetcher or Fetcher(settings)
        timeout, clip_memory = settings.decode_timeout, settings.decoder_memory_mib
        self._clips = DecoderPool(settings.decoders, timeout, clip_memory, whole=True)
        upload_memory = clip_memory + settings.max_upload_mib  # a large file is seen through a view, which counts
        self._uploads = DecoderPool(settings.uploads, timeout, upload_memory, whole=False)
        self._attached = DecoderPool(
            settings.decoders, timeout, upload_memory, whole=True
        )  # waits for no long recording
        self._fetching = asyncio.Semaphore(_MOST_FETCHED)
        self._fetched = asyncio.Semaphore(_MOST_FETCHED)
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to start a decoder, so that the first request need not wait for it. May be left out."""
        self._starting = asyncio.create_task(self._clips.start())

    async def close(self) -> None:
        """End the decoders; what they work on ends with an `AudioError`."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._clips.close()
        await self._uploads.close()
        await self._attached.close()
        await self._fetcher.close()

    async def load(self, clips: Sequence[Encoded | Link], told: list[str] | None = None) -> list[AudioPart]:
        """All recordings of a request, at the same time, in order; one that comes twice is decoded once.

        Args:
            told: to it is added what is to be said of them; see `DecoderPool.decode`. So for the other methods.

        Raises:
            TooLargeError, TooLongError, AudioError: also where all together are too many or too long.
        """
        check_count(len(clips), self._settings.max_clips)
        names = {clip: f"recording {at + 1}" if len(clips) > 1 else "the recording" for at, clip in enumerate(clips)}
        total = _Total(Counter(clips), self._settings.max_request_seconds)
        few = asyncio.Semaphore(_MOST_OF_A_REQUEST)
        remarks: dict[Encoded | Link, list[str]] = {clip: [] for clip in names}
        tasks = {
            clip: asyncio.create_task(self._load(clip, name, total, remarks[clip], few)) for clip, name in names.items()
        }
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        if told is not None:
            told += chain.from_iterable(remarks.values())
        return [tasks[clip].result() for clip in clips]

    async def from_base64(self, data: str, format: str = "") -> AudioPart:
        """One recording in base64; see `load`."""
        return (await self.load([Encoded(data, format)]))[0]

    async def from_url(self, url: str, told: list[str] | None = None) -> AudioPart:
        """One recording at an http(s) address or in a data URL; see `load`."""
        return (await self.load([Link(url)], told))[0]

    async def from_upload(self, file: Upload, told: list[str] | None = None) -> AudioPart:
        """One recording that came with a form, as long as a clip in a chat may be."""
        pieces = _bounded(_pieces(file), self._settings.max_upload_mib * MIB, "the file")
        return AudioPart((await self._samples(self._attached, pieces, "the file", told), SAMPLE_RATE))

    async def from_stream(self, body: AsyncIterator[bytes], name: str, told: list[str] | None = None) -> AudioPart:
        """One recording as it comes over the network; no decoder waits for it."""
        data = b"".join([piece async for piece in _bounded(body, self._settings.max_clip_mib * MIB, name)])
        return AudioPart((await self._samples(self._clips, _cut(data), name, told), SAMPLE_RATE))

    async def stream_upload(self, file: Upload, told: list[str] | None = None) -> AsyncGenerator[NDArray[np.float32]]:
        """A file of any allowed length, decoded as it is read: blocks, float32 [samples] at 16 kHz, of at most 20 s.

        Memory is bounded whatever the length. Close the iterator (`contextlib.aclosing`) to end it early: as long as it is
        open it keeps a decoder.

        Raises:
            TooLargeError, TooLongError, AudioError: perhaps after some blocks: a file's end is known only at its end.
        """
        pieces = _bounded(_pieces(file), self._settings.max_upload_mib * MIB, "the file")
        async with aclosing(self._uploads.decode(pieces, self._settings.upload_limits, "the file", told)) as blocks:
            async for block in blocks:
                yield block

    async def _load(
        self, clip: Encoded | Link, name: str, total: _Total, told: list[str], few: asyncio.Semaphore
    ) -> AudioPart:
        async with AsyncExitStack() as until_decoded:
            if isinstance(clip, Link) and not _holds_data(clip.url):
                async with few, self._fetching:
                    data = await self._fetcher.fetch(clip.url)
                    await until_decoded.enter_async_context(self._fetched)
            else:
                data = await self._bytes(clip, name)
            if not data:
                raise AudioError(f"{name} is empty (0 bytes); give a recording")
            samples = await self._samples(self._clips, _cut(data), name, told)
        total.add(clip, samples)
        return AudioPart((samples, SAMPLE_RATE))

    async def _bytes(self, clip: Encoded | Link, name: str) -> bytes:
        """What the request itself holds."""
        limit = self._settings.max_clip_mib * MIB
        if isinstance(clip, Encoded):
            data = await _from_base64(clip.data, limit, name)
            check_format(data, clip.format, name)
            return data
        if len(clip.url) > 4 * -(-limit // 3) + _DATA_URL_HEAD:
            raise _too_large(name, limit)
        return await asyncio.to_thread(read_data_url, "data:" + clip.url[5:])

    async def _samples(
        self, pool: DecoderPool, pieces: AsyncIterator[bytes], name: str, told: list[str] | None
    ) -> NDArray[np.float32]:
        async with aclosing(pool.decode(pieces, self._settings.clip_limits, name, told)) as blocks:
            return np.concatenate([block async for block in blocks])


def check_count(clips: int, most: int) -> None:
    """Raise `AudioError` where there are more recordings than may come at once."""
    if clips > most:
        raise AudioError(f"there are {clips} recordings in the request; at most {most} are taken, leave some out")


class _Total:
    """Adds up how long the recordings of a request are."""

    def __init__(self, times: Counter[Encoded | Link], limit: float) -> None:
        self._times, self._limit, self._seconds = times, limit, 0.0

    def add(self, clip: Encoded | Link, samples: NDArray[np.float32]) -> None:
        """Raises:
        TooLongError: all so far are longer than allowed.
        """
        self._seconds += self._times[clip] * samples.shape[0] / SAMPLE_RATE
        if self._seconds > self._limit:
            raise TooLongError(f"the recordings are longer than {self._limit:g} s together; cut them or leave some out")


def _holds_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _too_large(name: str, limit: int) -> TooLargeError:
    return TooLargeError(f"{name} is larger than {limit // MIB} MiB; cut it, or send it as mp3 or opus")


async def _from_base64(text: str, limit: int, name: str) -> bytes:
    if len(text) > 4 * -(-limit // 3):  # before anything is decoded
        raise _too_large(name, limit)
    if text[:5].lower() == "data:":
        raise AudioError(f"{name} is a data URL; give its base64 alone, or the URL as audio_url")
    try:
        return await asyncio.to_thread(base64.b64decode, text, None, True)
    except ValueError as error:
        hint = "leave out line breaks" if "\n" in text else "encode the file again"
        raise AudioError(f"{name} is not valid base64 ({error}); {hint}") from error


async def _bounded(pieces: AsyncIterator[bytes], limit: int, name: str) -> AsyncIterator[bytes]:
    """The pieces of a file; no more of it is taken than may come."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > limit:
            raise _too_large(name, limit)
        yield piece
    if not size:
        raise AudioError(f"{name} is empty (0 bytes); give a recording")


async def _pieces(file: Upload) -> AsyncIterator[bytes]:
    while piece := await file.read(_PIECE):
        yield piece


async def _cut(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]
