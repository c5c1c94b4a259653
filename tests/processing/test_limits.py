"""Small files that hold hours of sound, and headers that lie, are stopped while they are decoded; streams equal wholes."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from qwen2_audio.errors import AudioError, TooLargeError, TooLongError, UsageError
from qwen2_audio.processing import audio
from qwen2_audio.processing.audio import load_audio, stream_audio
from qwen2_audio.processing.limits import DecodeLimits
from tests.tiny import sound

MIB = 1 << 20


def written(kind: str, subtype: str | None, seconds: float, rate: int = 16_000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    wave = np.stack([sound(seconds, at, rate) for at in range(channels)], axis=1)
    soundfile.write(out, wave, rate, format=kind, subtype=subtype)
    return out.getvalue()


def silent_flac(seconds: int, rate: int = 96_000, channels: int = 8) -> bytes:
    """A bomb: silence, of which a flac of a few hundred KiB holds gigabytes."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, channels, "PCM_16", format="FLAC") as file:
        block = np.zeros((rate, channels), np.int16)
        for _ in range(seconds):
            file.write(block)
    return out.getvalue()


@pytest.fixture(scope="module")
def flac_bomb() -> bytes:
    return silent_flac(60)


@pytest.fixture(scope="module")
def opus_bomb() -> bytes:
    """Silence at hundreds of bytes a second."""
    out = io.BytesIO()
    with av.open(out, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=8000, layout="mono", options={"frame_duration": "60"})
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 60), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for minute in range(4):
            frame.pts = minute * 8000 * 60
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return out.getvalue()


def blocks_of(source: bytes | Path, limits: DecodeLimits = DecodeLimits()) -> Iterator[np.ndarray]:  # noqa: B008
    return stream_audio(source, limits, "the file")


KINDS = [
    ("WAV", "PCM_16", 16_000, 1),
    ("WAV", "FLOAT", 44_100, 2),
    ("FLAC", "PCM_24", 48_000, 2),
    ("AIFF", "PCM_16", 22_050, 1),
    ("OGG", "VORBIS", 44_100, 2),
    ("OGG", "OPUS", 48_000, 1),
    ("MP3", "MPEG_LAYER_III", 44_100, 2),
]


@pytest.mark.parametrize(("kind", "subtype", "rate", "channels"), KINDS)
def test_streamed_is_whole(kind: str, subtype: str, rate: int, channels: int) -> None:
    data = written(kind, subtype, 21.3, rate, channels)
    pieces = list(blocks_of(data))
    assert [piece.shape[0] for piece in pieces[:-1]] == [20 * 16_000]
    np.testing.assert_array_equal(np.concatenate(pieces), load_audio(data))


def test_joined_files_are_streamed_whole() -> None:
    data = written("OGG", "OPUS", 11.0, 48_000)  # by FFmpeg
    np.testing.assert_array_equal(np.concatenate(list(blocks_of(data + data))), load_audio(data + data))


def test_streamed_array_is_whole() -> None:
    wave = sound(45.0, rate=22_050)
    np.testing.assert_array_equal(np.concatenate(list(stream_audio((wave, 22_050)))), load_audio((wave, 22_050)))


def test_a_large_file_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_LARGE_FILE", 1 * MIB)
    out = io.BytesIO()
    soundfile.write(out, np.tile(sound(10.0), 40), 16_000, format="WAV")
    data = out.getvalue()
    path = tmp_path / "long.wav"
    path.write_bytes(data)
    wanted = load_audio(data)
    place = 0
    tracemalloc.start()
    try:
        for block in stream_audio(path):
            np.testing.assert_array_equal(block, wanted[place : place + block.shape[0]])
            place += block.shape[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert place == wanted.shape[0]
    assert peak < 8 * MIB < len(data)


# limits


@pytest.mark.parametrize(("kind", "subtype", "rate", "channels"), KINDS)
def test_seconds(kind: str, subtype: str, rate: int, channels: int) -> None:
    data = written(kind, subtype, 5.0, rate, channels)
    assert load_audio(data, DecodeLimits(seconds=5.2)).shape[0] == pytest.approx(80_000, abs=1600)
    with pytest.raises(TooLongError, match=r"the file is longer than 4 s; cut it"):
        list(blocks_of(data, DecodeLimits(seconds=4)))
    with pytest.raises(TooLongError):
        list(blocks_of(data * 3 if kind == "MP3" else data, DecodeLimits(seconds=1.5)))


def test_arrays_have_limits_too() -> None:
    with pytest.raises(TooLongError, match="the array"):
        load_audio((sound(2.0), 16_000), DecodeLimits(seconds=1))


def test_channels_and_rates() -> None:
    with pytest.raises(AudioError, match="3 channels; at most 2"):
        load_audio(written("WAV", "PCM_16", 0.1, channels=3), DecodeLimits(channels=2))
    with pytest.raises(AudioError, match="96000 Hz; at most 48000 Hz"):
        load_audio(written("FLAC", "PCM_16", 0.1, 96_000), DecodeLimits(rate=48_000))


def memory_of(data: bytes, limits: DecodeLimits, error: type[AudioError]) -> int:
    """Python's memory (numpy's arrays count) at its highest while a recording is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            load_audio(data, limits)
        assert "\n" not in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_flac_bomb_is_stopped_on_the_way(flac_bomb: bytes) -> None:
    assert len(flac_bomb) < MIB  # 176 MiB of sound in 60 s
    assert memory_of(flac_bomb, DecodeLimits(pcm_bytes=16 * MIB), TooLargeError) < 16 * MIB
    assert memory_of(flac_bomb, DecodeLimits(seconds=3), TooLongError) < 16 * MIB


def test_opus_bomb_is_stopped_on_the_way(opus_bomb: bytes) -> None:
    assert len(opus_bomb) < MIB // 4  # 4 min
    assert memory_of(opus_bomb, DecodeLimits(seconds=20), TooLongError) < 24 * MIB
    joined = opus_bomb + opus_bomb  # the other decoder
    assert memory_of(joined, DecodeLimits(seconds=20), TooLongError) < 24 * MIB


def with_flac_header(data: bytes, *, rate: int | None = None, total: int | None = None) -> bytes:
    """A flac whose first block tells another rate (20 bits) or number of samples (36 bits)."""
    out = bytearray(data)
    word = int.from_bytes(out[18:26], "big")
    if rate is not None:
        word = (word & ~(0xFFFFF << 44)) | rate << 44
    if total is not None:
        word = (word & ~0xF_FFFF_FFFF) | total
    out[18:26] = word.to_bytes(8, "big")
    return bytes(out)


@pytest.mark.parametrize("total", [1, 48_000])
def test_a_flac_that_tells_too_short_a_length_is_heard_whole(total: int) -> None:
    data = with_flac_header(written("FLAC", "PCM_16", 6.0, 48_000), total=total)
    assert load_audio(data).shape[0] == 96_000
    with pytest.raises(TooLongError):
        load_audio(data, DecodeLimits(seconds=2))


@pytest.mark.parametrize("total", [2**36 - 1, 10**9])
def test_a_flac_that_tells_too_great_a_length_is_refused_without_memory(total: int) -> None:
    data = with_flac_header(written("FLAC", "PCM_16", 3.0, 48_000), total=total)
    assert memory_of(data, DecodeLimits(), AudioError) < 16 * MIB
    assert memory_of(data, DecodeLimits(seconds=10), AudioError) < 16 * MIB


def test_a_forged_rate_does_not_make_a_bomb_short(flac_bomb: bytes) -> None:
    forged = with_flac_header(flac_bomb, rate=655_350)
    assert memory_of(forged, DecodeLimits(seconds=600, pcm_bytes=32 * MIB), AudioError) < 24 * MIB
    assert memory_of(forged, DecodeLimits(rate=192_000), AudioError) < 8 * MIB


@pytest.mark.parametrize("size", [0x7FFF_0000, 0xFFFF_FFFF, 0])
def test_a_wav_that_lies_about_its_length(size: int) -> None:
    data = bytearray(written("WAV", "PCM_16", 3.0))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    with pytest.raises(TooLongError):
        load_audio(bytes(data), DecodeLimits(seconds=2))


def test_a_wav_of_many_channels_takes_no_memory() -> None:
    data = bytearray(written("WAV", "PCM_16", 1.0))
    data[22:24] = struct.pack("<H", 1000)
    with pytest.raises(AudioError):
        load_audio(bytes(data), DecodeLimits(channels=8))


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_make_no_sense(value: float) -> None:
    with pytest.raises(UsageError, match="seconds must be positive"):
        DecodeLimits(seconds=value)


def test_a_stream_can_be_left() -> None:
    blocks = blocks_of(written("FLAC", "PCM_16", 25.0))
    next(blocks)
    blocks.close()
