"""Recordings of any kind to 16 kHz mono float32, as `librosa.load(sr=16000)` gives them."""

from __future__ import annotations

import base64
import http.client
import io
import mmap
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.processing.conversation import AudioPart, AudioSource
from qwen2_audio.processing.decoding import Block, SoundFile, decode_blocks
from qwen2_audio.processing.limits import DecodeLimits

MAX_DOWNLOAD_BYTES = 512 * 1024 * 1024
URL_TIMEOUT_SECONDS = 30
RATES = (1_000, 1_000_000)
"""Sampling rates that a recording can have; anything else is a damaged header."""


_NO_LIMITS = DecodeLimits()
_STREAM_SAMPLES = 20 * SAMPLE_RATE
_LARGE_FILE = 64 * 1024 * 1024
"""Files from this size on are not read into memory."""
_LARGEST_SAMPLE = 1e10
"""Some write 32-bit whole numbers as they are, up to 2.1e9; anything larger is damage."""
_LONGEST_ESCAPED = 64 * 1024
"""Characters of a data URL without base64: to read them takes more than 200 bytes for each that is escaped."""


def load_audio(source: AudioSource, limits: DecodeLimits = _NO_LIMITS, name: str = "") -> NDArray[np.float32]:
    """Read, decode, mix down and resample one recording.

    Args:
        source: a path, http(s) or data URL, the bytes of a file, an open binary file, or (samples, rate) with samples
            of shape [samples] or [channels, samples], floating point or integer of up to 32 bits (scaled to -1 .. 1).
        limits: how much sound there may be; applied while decoding.
        name: what to call it in messages; default: its path or address.

    Returns:
        float32 [samples] at 16 kHz.

    Raises:
        TooLongError, TooLargeError: there is more sound than the limits allow.
        AudioError: it cannot be had, is no audio, or is empty.
    """
    return np.concatenate(list(_resampled(*_blocks(source, limits, name))))


def stream_audio(
    source: AudioSource, limits: DecodeLimits = _NO_LIMITS, name: str = ""
) -> Iterator[NDArray[np.float32]]:
    """The same, decoded while it is asked for: laid end to end, the blocks equal what `load_audio` returns.

    Memory does not grow with the length; a large file is not read as a whole either.

    Returns:
        float32 [samples] at 16 kHz, blocks of 20 s, the last one shorter.

    Raises:
        TooLongError, TooLargeError, AudioError: as `load_audio`, perhaps only after some blocks.
    """
    held: list[NDArray[np.float32]] = []
    count = 0
    for piece in _resampled(*_blocks(source, limits, name)):
        held.append(piece)
        count += piece.shape[0]
        if count >= _STREAM_SAMPLES:
            joined = np.concatenate(held)
            whole = count - count % _STREAM_SAMPLES
            yield from np.split(joined[:whole], whole // _STREAM_SAMPLES)
            held, count = [joined[whole:].copy()], count - whole
    if count:
        yield np.concatenate(held)


def _blocks(source: AudioSource, limits: DecodeLimits, name: str) -> tuple[Iterator[Block], str]:
    """Mono samples at the rate of the recording, and what to call it."""
    if isinstance(source, tuple):
        if len(source) != 2:
            raise AudioError(f"a recording as a tuple is (samples, rate), got {len(source)} values")
        samples, rate, name = _from_array(*source), int(source[1]), name or "the array"
        limits.refuse_amount(name, samples.shape[0], 1, rate)
        return iter([(samples, rate)]), name
    file = _read(source)
    file = replace(file, name=name or file.name)
    if not len(file.data):
        raise AudioError(f"{file.name} is empty (0 bytes); give a recording")
    return decode_blocks(file, limits), file.name


def _resampled(blocks: Iterator[Block], name: str) -> Iterator[NDArray[np.float32]]:
    """float32 [samples] at 16 kHz, piece by piece; altogether at least one sample."""
    import soxr

    given, taken, stream, rate = 0, 0, None, SAMPLE_RATE
    for samples, rate in blocks:
        peak = float(np.abs(samples).max(initial=0))
        if not np.isfinite(peak):
            raise AudioError(f"{name} holds samples that are not numbers (NaN or infinity); repair or re-export it")
        if peak > _LARGEST_SAMPLE:  # the network that finds speech would hear nothing behind it
            raise AudioError(f"{name} holds samples of absurd size ({peak:.1e}); scale it to the range -1 to 1")
        if not RATES[0] <= rate <= RATES[1]:
            raise AudioError(
                f"{name} has a sampling rate of {rate} Hz; {RATES[0]} to {RATES[1]} Hz make sense, re-export it"
            )
        taken += samples.shape[0]
        if rate != SAMPLE_RATE:
            stream = stream or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            samples = stream.resample_chunk(samples)
        given += samples.shape[0]
        yield samples
    if taken == 0:
        raise AudioError(f"{name} holds no samples; give a recording with sound in it")
    if stream is not None:
        wanted = -(-taken * SAMPLE_RATE // rate) - given
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[:wanted]
        yield np.pad(rest, (0, wanted - rest.shape[0]))


def load_part(part: AudioPart) -> NDArray[np.float32]:
    """Like `load_audio`, of the stretch that the part names.

    Raises:
        AudioError: also where the stretch does not lie inside the recording.
    """
    samples = load_audio(part.source)
    if part.start == 0 and part.end is None:
        return samples
    seconds = samples.shape[0] / SAMPLE_RATE
    end = seconds if part.end is None else part.end
    if not 0 <= part.start < end <= seconds + 0.01:  # the times of annotations are rounded
        raise AudioError(f"there is no stretch from {part.start} to {part.end} s in a recording of {seconds:.2f} s")
    return samples[round(part.start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def _from_array(samples: Any, rate: Any) -> NDArray[np.float32]:
    try:
        array = np.asarray(samples)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with gradients
        raise AudioError(f"samples must be numbers of shape [samples] or [channels, samples]; {error}") from error
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate <= 0:
        raise AudioError(f"the sampling rate must be a positive whole number, got {rate!r}")
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise AudioError(
            f"samples must be numbers of shape [samples] or [channels, samples], got {array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:  # no recording has such samples: their scale is unknown
        raise AudioError(f"whole-number samples must have at most 32 bits, got {array.dtype}; convert them to int16")
    if array.ndim == 2 and 0 < array.shape[1] <= 8 < array.shape[0]:
        raise AudioError(f"samples of shape {list(array.shape)} look like [samples, channels]; transpose them")
    if array.dtype.kind == "i":
        array = array / float(-np.iinfo(array.dtype).min)
    elif array.dtype.kind == "u":
        middle = (np.iinfo(array.dtype).max + 1) / 2
        array = (array - middle) / middle
    if array.ndim == 2:
        if array.shape[0] == 0:
            raise AudioError("the array has 0 channels; give at least one")
        array = array.mean(axis=0)
    return np.ascontiguousarray(array, dtype=np.float32)


def _read(source: str | os.PathLike[str] | bytes | BinaryIO) -> SoundFile:
    """The bytes of a recording, and what to call it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return SoundFile(bytes(source), "the recording")
    if isinstance(source, str) and source.startswith("data:"):
        return SoundFile(read_data_url(source), "the data URL")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return SoundFile(_read_url(source), source)
    if isinstance(source, str | os.PathLike):
        return _read_file(source)
    if hasattr(source, "read"):
        data = b"" if isinstance(source, io.TextIOBase) else source.read()
        if isinstance(source, io.TextIOBase) or not isinstance(data, bytes):
            raise AudioError("the file object gives text, not bytes; open it in binary mode ('rb')")
        return SoundFile(data, str(getattr(source, "name", "the file object")))
    raise AudioError(
        f"cannot read a recording from {type(source).__name__}; give a path, URL, bytes or (samples, rate)"
    )


def _read_file(path: str | os.PathLike[str]) -> SoundFile:
    text = os.fspath(path)
    file = Path(unquote(text.removeprefix("file://")) if text.startswith("file://") else text)
    try:
        place = Path(os.path.expanduser(file))
        if place.stat().st_size < _LARGE_FILE:
            return SoundFile(place.read_bytes(), str(file))
        with place.open("rb") as opened:
            return SoundFile(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), str(file), place)
    except FileNotFoundError:
        raise AudioError(f"no such file: {file}; check the path") from None
    except IsADirectoryError:
        raise AudioError(f"{file} is a folder; give an audio file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"cannot read {file}: {reason}; check the path and its permissions") from error


def read_data_url(url: str) -> bytes:
    """What a data URL holds.

    Raises:
        AudioError: it is none, its base64 is not valid, or it is long and not in base64.
    """
    header, comma, body = url.partition(",")
    if not comma:
        raise AudioError("the data URL has no comma; it should look like data:audio/wav;base64,...")
    if not header.endswith(";base64"):
        if len(body) > _LONGEST_ESCAPED:
            raise AudioError(
                f"the data URL holds {len(body)} characters without ;base64, at most {_LONGEST_ESCAPED} are read; "
                "send it as data:audio/wav;base64,..."
            )
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise AudioError(f"the data URL is not valid base64 ({error}); encode the file again") from error


def _as_sent(url: str) -> str:
    """An address in ASCII: the host in IDNA, other letters as %XX in UTF-8; what is ASCII stays as it is."""
    if url.isascii():
        return url
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    if not place.isascii():
        host, colon, port = place.partition(":")
        place = host.encode("idna").decode("ascii") + colon + port
    address = parts._replace(netloc=user + at + place).geturl()
    return re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0]), address)


def _read_url(url: str) -> bytes:
    try:
        request = urllib.request.Request(_as_sent(url), headers={"User-Agent": "qwen2-audio"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            kind = response.headers.get_content_type()
            promised = response.headers.get("Content-Length", "")
            data: bytes = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        host = urlsplit(url).netloc
        raise AudioError(f"{url}: {host} answered {error.code} {error.reason}; check the address") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise AudioError(f"cannot fetch {url}: {reason}; check the address and the network") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise AudioError(f"{url} is larger than {MAX_DOWNLOAD_BYTES >> 20} MiB; cut the recording first")
    if promised.isdecimal() and len(data) < int(promised):
        raise AudioError(f"{url} was cut short: {len(data)} of {promised} bytes arrived; try again")
    if kind == "text/html" or data[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise AudioError(f"{url} is a web page (HTML), not a recording; give the address of the file itself")
    return data
