"""The bytes of a sound file to samples: libsndfile first (exact for wav and flac), FFmpeg's libraries for the rest.

Both are lenient in their own ways; here a file that was cut short or is damaged is an error or a warning, never just heard
shorter than it is.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.errors import AudioError, AudioWarning
from qwen2_audio.processing.headers import STREAMED_WAV, mp3_end, ogg_state, promised_bytes, wav_data

CUT_SHORT_SECONDS = 0.1
"""Sound that a file's header may promise and the file not hold; if more is missing, the file was cut short."""
_SUPPORTED = "supported are wav, flac, mp3, ogg, opus, m4a, webm, mp4"
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,gsm,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "ogg,rm,tta,w64,wav,wv"
)
"""What FFmpeg may take a file for: nothing that names other files or addresses, as play lists do."""
_SEPARATE_FRAMES = ("mp3", "aac")
"""Formats without an index, in which players skip a damaged frame and go on."""


def decode(data: bytes, name: str) -> tuple[NDArray[np.float32], int]:
    """Mono samples and rate of a sound file.

    Args:
        name: what to call it in messages.

    Raises:
        AudioError: it cannot be decoded, or was cut short.
    """
    import soundfile

    if _better_with_av(data, name):
        return _decode_with_av(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, promised = int(file.samplerate), int(file.frames) / file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (
        soundfile.LibsndfileError,
        ValueError,
        MemoryError,
    ):  # the latter two: a length that nobody knew when writing
        return _decode_with_av(data, name)
    seconds = samples.shape[0] / rate
    if data[:4] == b"RIFF":
        size, present, bytes_a_second = wav_data(data)
        if size == 0 and present:  # streamed; libsndfile believes the 0
            return _decode_with_av(data, name)
        if size < STREAMED_WAV and bytes_a_second:
            promised = seconds + max(0, size - present) / bytes_a_second
    elif samples.shape[0] == 0:
        return _decode_with_av(data, name)
    _refuse_cut_short(name, seconds, promised)
    return np.ascontiguousarray(samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]), rate


def _better_with_av(data: bytes, name: str) -> bool:
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
        rest = data[end:] if end else b""
        return not tells or len(rest) > 65536 or b"Xing" in rest or b"Info" in rest
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


def _decode_with_av(data: bytes, name: str) -> tuple[NDArray[np.float32], int]:
    import av

    hint = f"{name} is not a recording that can be decoded"
    try:
        with av.open(io.BytesIO(data), mode="r", options={"format_whitelist": _DEMUXERS}) as container:
            if not container.streams.audio:
                raise AudioError(f"{name} has no audio track; give a file with sound in it")
            frames, end, damaged = _frames(container)
            promised = _promised_seconds(container)
    except AudioError:
        raise
    except (av.FFmpegError, ValueError, IndexError) as error:
        text = getattr(error, "strerror", None) or error
        raise AudioError(f"{hint} ({text}); {_SUPPORTED}") from error
    if not frames:
        raise AudioError(f"{hint} (no sound in it); {_SUPPORTED}")
    samples, rate = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(axis=0), frames[0].sample_rate
    _refuse_cut_short(name, max(samples.shape[0] / rate, end), promised)
    if damaged:
        places = "one place" if damaged == 1 else f"{damaged} places"
        warnings.warn(f"{name} is damaged in {places}, left out", AudioWarning, stacklevel=4)
    return np.ascontiguousarray(samples, dtype=np.float32), int(rate)


def _frames(container: Any) -> tuple[list[Any], float, int]:
    """All frames of the first audio track, the time in seconds at which the last ends, and how many places are damaged."""
    import av

    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="fltp")
    frames: list[Any] = []
    end, damaged = 0.0, 0
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            if container.format.name not in _SEPARATE_FRAMES:
                raise
            damaged += 1
            continue
        for frame in decoded:
            end = max(end, (frame.time or 0.0) + frame.samples / frame.sample_rate)
            frames += resampler.resample(frame)
    return frames + resampler.resample(None), end, damaged


def _promised_seconds(container: Any) -> float:
    """How much sound the container says it holds; 0 where that is an estimate from the bit rate, or that of a longer video."""
    stream = container.streams.audio[0]
    if container.format.name.startswith(("mov", "flac")) and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name.startswith("matroska") and len(container.streams) == 1 and container.duration:
        return float(container.duration / 1e6)
    return 0.0
