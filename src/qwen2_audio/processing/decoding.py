"""The bytes of a sound file to samples: libsndfile first (exact for wav and flac), FFmpeg's libraries for the rest.

Both are lenient in their own ways; here a file that was cut short or is damaged is an error or a warning, never just heard
shorter than it is. Both run block by block, so that limits hold whatever a header says and hours need no more memory than
seconds.
"""

from __future__ import annotations

import io
import mmap
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.errors import AudioError, AudioWarning
from qwen2_audio.processing.headers import is_known, mp3_end, ogg_state, promised_bytes, wav_data
from qwen2_audio.processing.limits import DecodeLimits

CUT_SHORT_SECONDS = 0.1
"""Sound that a file's header may promise and the file not hold; if more is missing, the file was cut short."""
_SUPPORTED = "supported are wav, flac, mp3, ogg, opus, m4a, webm, mp4"
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,gsm,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "ogg,rm,tta,w64,wav,wv"
)
"""What FFmpeg may take a file for: nothing that names other files or addresses, as play lists do."""
_SEPARATE_FRAMES = ("mp3", "aac")
"""Formats without an index, in which players skip a damaged frame and go on."""


_BLOCK = 1 << 16
"""Samples decoded at a time, of all channels together at most 8 times as many."""
_UNREAD = 1 << 14
"""Bytes that libsndfile may leave behind the end of a flac; more means that its header tells too short a length."""

Block: TypeAlias = tuple[NDArray[np.float32], int]
"""Mono samples and their rate."""


@dataclass(frozen=True, slots=True)
class SoundFile:
    """The bytes of a sound file, for looking at its headers, and a way to read them.

    Attributes:
        data: all of it; of a large file a view (`mmap`) that takes no memory.
        name: what to call it in messages.
        path: where it lies, if it is a view.
    """

    data: bytes | mmap.mmap
    name: str
    path: Path | None = None

    def open(self) -> BinaryIO:
        """It as a binary file, from its beginning."""
        return io.BytesIO(self.data) if self.path is None else self.path.open("rb")


def decode_blocks(file: SoundFile, limits: DecodeLimits) -> Iterator[Block]:
    """Mono samples of a sound file, some at a time, in order; the rate is the same in all of them.

    Raises:
        TooLongError, TooLargeError: there is more sound than allowed; raised as soon as that much was decoded.
        AudioError: it cannot be decoded, or was cut short; perhaps only after the last block.
    """
    given: tuple[int, int] | None = (0, 0)
    if not _better_with_av(file.data, file.name):
        given = yield from _with_soundfile(file, limits)
    if given is not None:
        yield from _with_av(file, limits, *given)


def _with_soundfile(file: SoundFile, limits: DecodeLimits) -> Generator[Block, None, tuple[int, int] | None]:
    """By libsndfile; returns None at the end, or where it failed: how many samples it gave, at which rate."""
    import soundfile

    riff = file.data[:4] == b"RIFF"
    size, present, bytes_a_second = wav_data(file.data) if riff else (0, 0, 0)
    if size == 0 and present:  # streamed; libsndfile believes the 0
        return 0, 0
    samples, rate = 0, 0
    try:
        with file.open() as raw, soundfile.SoundFile(raw) as sound:
            rate, channels, promised = int(sound.samplerate), int(sound.channels), sound.frames / sound.samplerate
            limits.refuse_format(file.name, channels, rate)
            block = min(_BLOCK, max(1, 8 * _BLOCK // channels))
            while True:
                part = sound.read(block, dtype="float32", always_2d=True)
                samples += part.shape[0]
                limits.refuse_amount(file.name, samples, channels, rate)
                if part.shape[0]:
                    yield np.ascontiguousarray(part.mean(axis=1) if channels > 1 else part[:, 0]), rate
                if part.shape[0] < block:
                    break
            hidden = file.data[:4] == b"fLaC" and len(file.data) - raw.tell() > _UNREAD
    except AudioError:
        raise
    except (soundfile.LibsndfileError, ValueError, OverflowError, MemoryError):  # also: a length that nobody knew
        return samples, rate
    if hidden or (samples == 0 and not riff):
        return samples, rate
    if is_known(size) and bytes_a_second:
        promised = samples / rate + max(0, size - present) / bytes_a_second
    _refuse_cut_short(file.name, samples / rate, promised)
    return None


def _better_with_av(data: bytes | mmap.mmap, name: str) -> bool:
    """Where libsndfile would stop early: joined files, and mp3 whose length it guesses from the bit rate."""
    if data[:4] == b"OggS":
        joined, inside_a_page, no_end = ogg_state(data)
        if inside_a_page:
            raise AudioError(f"{name} was cut short: it ends inside a page; copy or download it again, or re-export it")
        if no_end:
            warnings.warn(f"{name} lacks the mark of its end; it may have been cut short", AudioWarning, stacklevel=4)
        return joined
    if data[:3] == b"ID3" or (data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE0 == 0xE0):
        tells, end = mp3_end(data)
        _refuse_missing_bytes(name, end, len(data), spare=end // 100)
        if not tells or (end and len(data) - end > 65536):
            return True
        rest = data[end:] if end else b""
        return b"Xing" in rest or b"Info" in rest
    _refuse_missing_bytes(name, promised_bytes(data), len(data), spare=1)  # a last odd byte is often left unpadded
    return False


def _refuse_missing_bytes(name: str, promised: int, present: int, spare: int) -> None:
    if promised - present > spare:
        raise AudioError(
            f"{name} was cut short: its header promises {promised} bytes, {present} are there; "
            "copy or download it again, or re-export it"
        )


def _refuse_cut_short(name: str, seconds: float, promised: float) -> None:
    if promised - seconds > CUT_SHORT_SECONDS:
        raise AudioError(
            f"{name} was cut short: its header promises {promised:.1f} s of sound, {seconds:.1f} s are there; "
            "copy or download it again, or re-export it"
        )


def _with_av(file: SoundFile, limits: DecodeLimits, given: int, given_rate: int) -> Iterator[Block]:
    """By FFmpeg's libraries, without the first `given` samples, which are known already."""
    import av

    hint, samples, rate, told = f"{file.name} is not a recording that can be decoded", 0, 0, _Told()
    try:
        with file.open() as raw, av.open(raw, mode="r", options={"format_whitelist": DEMUXERS}) as container:
            if not container.streams.audio:
                raise AudioError(f"{file.name} has no audio track; give a file with sound in it")
            for part, rate in _gathered(_frames(container, file.name, limits, told)):
                if given and rate != given_rate:
                    raise AudioError(f"{file.name} is damaged after {given / given_rate:.1f} s; re-export it")
                new = part[max(0, given - samples) :]
                samples += part.shape[0]
                if new.shape[0]:
                    yield new, rate
            promised = _promised_seconds(container)
    except AudioError:
        raise
    except (av.FFmpegError, ValueError, IndexError, OverflowError, MemoryError) as error:
        text = getattr(error, "strerror", None) or error or "out of memory"
        raise AudioError(f"{hint} ({text}); {_SUPPORTED}") from error
    if not rate:
        raise AudioError(f"{hint} (no sound in it); {_SUPPORTED}")
    _refuse_cut_short(file.name, max(samples / rate, told.end), promised)
    if told.damaged:
        places = "one place" if told.damaged == 1 else f"{told.damaged} places"
        warnings.warn(f"{file.name} is damaged in {places}, left out", AudioWarning, stacklevel=5)


@dataclass(slots=True)
class _Told:
    """What the frames of a file say: the time in seconds at which the last ends, and how many places are damaged."""

    end: float = 0.0
    damaged: int = 0


def _frames(container: Any, name: str, limits: DecodeLimits, told: _Told) -> Iterator[Any]:
    """All frames of the first audio track, float32 [channels, samples]."""
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="fltp")
    samples = 0
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            if container.format.name not in _SEPARATE_FRAMES:
                raise
            told.damaged += 1
            continue
        for frame in decoded:
            channels, rate = len(frame.layout.channels), frame.sample_rate
            if not samples:
                limits.refuse_format(name, channels, rate)
            samples += frame.samples
            limits.refuse_amount(name, samples, channels, rate)
            told.end = max(told.end, (frame.time or 0.0) + frame.samples / rate)
            yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _gathered(frames: Iterator[Any]) -> Iterator[Block]:
    """Frames are short; several mixed down at a time."""
    held: list[NDArray[np.float32]] = []
    count, rate = 0, 0
    for frame in frames:
        held.append(frame.to_ndarray())
        count, rate = count + frame.samples, int(frame.sample_rate)
        if count >= _BLOCK:
            yield _mixed_down(held), rate
            held, count = [], 0
    if held:
        yield _mixed_down(held), rate


def _mixed_down(frames: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.concatenate(frames, axis=1).mean(axis=0), dtype=np.float32)


def _promised_seconds(container: Any) -> float:
    """How much sound the container says it holds; 0 where that is an estimate from the bit rate, or that of a longer video."""
    stream = container.streams.audio[0]
    if container.format.name.startswith(("mov", "flac")) and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name.startswith("matroska") and len(container.streams) == 1 and container.duration:
        return float(container.duration / 1e6)
    return 0.0
