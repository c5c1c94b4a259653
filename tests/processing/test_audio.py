"""Recordings of every kind come out as librosa gives them; every bad one is an `AudioError` of one line."""

from __future__ import annotations

import base64
import io
import struct
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from qwen2_audio.errors import AudioError
from qwen2_audio.processing.audio import load_audio, stream_audio
from tests.processing.refused import assert_refused
from tests.tiny import sound


def encoded(samples: NDArray[np.float32], rate: int, kind: str, subtype: str | None = None) -> bytes:
    """The bytes of a sound file; samples [samples] or [samples, channels]."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def encoded_with_av(samples: NDArray[np.float32], rate: int, kind: str, codec: str, **options: str) -> bytes:
    out = io.BytesIO()
    out.name = f"sound.{kind}"  # faststart reads the file again, which needs a real one
    with av.open(out, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return out.getvalue()


def librosa_load(data: bytes, tmp_path: Path, suffix: str) -> NDArray[np.float32]:
    import librosa

    path = tmp_path / f"reference.{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return librosa.load(path, sr=16000)[0]


WAV = encoded(sound(0.5), 16000, "WAV")

LOSSLESS = [
    *[("WAV", sub) for sub in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
    *[("FLAC", sub) for sub in ("PCM_16", "PCM_24")],
    ("AIFF", "PCM_16"),
]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(("kind", "subtype"), LOSSLESS)
def test_equals_librosa(tmp_path: Path, kind: str, subtype: str, rate: int) -> None:
    wave = np.stack([sound(0.517, 1, rate), 0.5 * sound(0.517, 2, rate)], axis=1)
    data = encoded(wave, rate, kind, subtype)
    got, wanted = load_audio(data), librosa_load(data, tmp_path, kind.lower())
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")])
def test_lossy_equals_librosa(tmp_path: Path, kind: str, subtype: str, rate: int) -> None:
    rate = 48000 if (subtype, rate) == ("OPUS", 44100) else rate
    wave = sound(1.234, 3, rate)
    data = encoded(wave, rate, kind, subtype)
    got, wanted = load_audio(data), librosa_load(data, tmp_path, kind.lower())
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    assert abs(len(got) / 16000 - 1.234) < 0.01


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("webm", "libopus"), ("ogg", "libopus"), ("mp4", "aac"), ("ipod", "aac"), ("adts", "aac"), ("matroska", "aac")],
)
def test_containers_that_libsndfile_does_not_know(kind: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    wave = sound(2.0, 4, 48000)
    got = load_audio(encoded_with_av(wave, 48000, kind, codec))
    assert abs(len(got) / 16000 - 2.0) < 0.1
    power = np.sqrt(np.mean(got**2)) / np.sqrt(np.mean(wave**2))
    assert 0.9 < power < 1.1


def test_video_is_heard() -> None:
    """The sound of a film; the picture is ignored."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for packet in video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")):
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(sound(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*audio.encode(frame), *audio.encode(None), *video.encode(None)]:
            container.mux(packet)
    assert abs(len(load_audio(out.getvalue())) / 16000 - 1.0) < 0.1


@pytest.mark.parametrize("rate", [7999, 11025, 12345, 16001, 96000])
@pytest.mark.parametrize("samples", [1, 777, 10_007])
def test_resampled_length(rate: int, samples: int) -> None:
    wave = sound(samples / rate + 1, rate=rate)[:samples]
    assert load_audio((wave, rate)).shape[0] == -(-samples * 16000 // rate)


# every way to hand over a recording


def test_sources_agree(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(WAV)
    samples, rate = soundfile.read(path, dtype="float32")
    url = "data:audio/wav;base64," + base64.b64encode(WAV).decode()
    with path.open("rb") as file:
        sources = [str(path), path, f"file://{path}", WAV, bytearray(WAV), io.BytesIO(WAV), file, url, (samples, rate)]
        for source in sources:
            np.testing.assert_array_equal(load_audio(source), samples)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.uint16, np.float16, np.float64])
def test_arrays(dtype: type[np.generic]) -> None:
    wave = sound(0.2)
    kind = np.dtype(dtype).kind
    if kind == "f":
        array = wave.astype(dtype)
    else:
        half = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        array = np.round((wave.astype(np.float64) + (kind == "u")) * half).astype(dtype)
    step = {1: 1e-2, 2: 1e-3}.get(np.dtype(dtype).itemsize, 1e-6)
    np.testing.assert_allclose(load_audio((array, 16000)), wave, atol=step)
    np.testing.assert_allclose(load_audio((np.stack([array, array]), 16000)), wave, atol=step)


def test_int64_is_refused_since_its_scale_is_unknown() -> None:
    with pytest.raises(AudioError, match="int64"):
        load_audio((np.zeros(4000, np.int64), 16000))


def test_int16_full_scale() -> None:
    samples = load_audio((np.array([-32768, 0, 16384, 32767], np.int16), 16000))
    np.testing.assert_allclose(samples, [-1, 0, 0.5, 32767 / 32768], atol=1e-7)


# bad recordings: one line that says what was wrong, what was given and what to do


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.wav", "no such file", "none.wav", "check the path")
    assert_refused(str(tmp_path), "is a folder", str(tmp_path), "give an audio file")
    (tmp_path / "empty.wav").touch()
    assert_refused(tmp_path / "empty.wav", "empty.wav", "0 bytes", "give a recording")
    assert_refused("nul\0byte.wav", "cannot read")


def test_text_renamed_wav(tmp_path: Path) -> None:
    path = tmp_path / "note.wav"
    path.write_text("this is no sound at all\n" * 50)
    assert_refused(path, "note.wav", "not a recording", "supported are wav")


def test_text_mode_file(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(WAV)
    with path.open(encoding="utf-8") as file:  # reading it would already fail: these bytes are no UTF-8
        assert_refused(file, "text, not bytes", "binary mode")
    assert_refused(io.StringIO("sound"), "text, not bytes", "binary mode")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((np.zeros(0, np.float32), 16000), ("no samples", "give a recording")),
        ((np.zeros((0, 100), np.float32), 16000), ("0 channels", "give at least one")),
        ((np.array([0.0, np.nan]), 16000), ("NaN", "repair")),
        ((np.array([0.0, np.inf]), 16000), ("infinity", "repair")),
        ((np.array([0.0, -1.1e10]), 16000), ("absurd size (1.1e+10)", "scale it")),
        ((np.zeros(10), 0), ("sampling rate", "got 0")),
        ((np.zeros(10), 16000.5), ("sampling rate", "16000.5")),
        ((np.zeros((1000, 2)), 16000), ("[samples, channels]", "transpose")),
        ((np.zeros((1, 2, 3)), 16000), ("[1, 2, 3]",)),
        ((["a"], 16000), ("must be numbers",)),
        (([[1.0], [1.0, 2.0]], 16000), ("must be numbers",)),
        ((np.zeros(10),), ("(samples, rate)", "1 values")),
        (3, ("int", "give a path")),
        (None, ("NoneType", "give a path")),
    ],
)
def test_bad_arrays_and_objects(source: object, words: tuple[str, ...]) -> None:
    assert_refused(source, *words)


def test_wav_without_samples_or_with_nan() -> None:
    assert_refused(encoded(np.zeros(0, np.float32), 16000, "WAV"), "no samples")
    assert_refused(encoded(np.full(1000, np.nan, np.float32), 16000, "WAV", "FLOAT"), "NaN")


def test_one_absurd_sample_is_refused_and_large_ones_are_not() -> None:
    wave = sound(25.0)
    wave[-1000] = 2.0**31  # a 32-bit whole number as it is
    np.testing.assert_array_equal(load_audio((wave, 16000)), wave)
    wave[-1000] = 1e20
    file = encoded(wave, 16000, "WAV", "FLOAT")
    assert_refused(file, "absurd size")
    blocks = stream_audio(file)
    assert len(next(blocks)) == 20 * 16000
    with pytest.raises(AudioError, match="absurd size"):
        list(blocks)


def test_wav_with_0_channels() -> None:
    data = bytearray(WAV)
    data[22:24] = struct.pack("<H", 0)
    assert_refused(bytes(data), "not a recording")


def test_no_audio_track() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*video.encode(picture), *video.encode(None)]:
            container.mux(packet)
    assert_refused(out.getvalue(), "no audio track", "give a file with sound")


# files that were cut short


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("MP3", "MPEG_LAYER_III")])
def test_cut_short(kind: str, subtype: str, share: float) -> None:
    data = encoded(sound(3.0), 16000, kind, subtype)
    assert_refused(data[: int(share * len(data))], "cut short", "promises", "download it again")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_flac(share: float) -> None:
    data = encoded(sound(3.0), 16000, "FLAC")
    assert_refused(data[: int(share * len(data))])


@pytest.mark.parametrize("size", range(3, 13))
def test_the_head_of_an_mp3_alone(size: int) -> None:
    assert_refused(b"ID3\x04\0\0\0\0\0\x40\0\0"[:size])


@pytest.mark.parametrize("kind", ["mp4", "ipod"])
def test_cut_mp4(tmp_path: Path, kind: str) -> None:
    """Without its index it cannot be read; with the index in front it promises more than is there."""
    wave = sound(3.0, rate=48000)
    plain = encoded_with_av(wave, 48000, kind, "aac")
    assert_refused(plain[: len(plain) // 2], "not a recording")
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", format=kind, options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    fast = path.read_bytes()
    assert abs(len(load_audio(fast)) / 16000 - 3.0) < 0.1
    for cut in range(len(fast) // 3, 2 * len(fast) // 3, 997):
        assert_refused(fast[:cut])
    start = fast.index(b"mdat") + 4
    with av.open(io.BytesIO(fast)) as container:  # between two packets
        boundary = [packet.pos for packet in container.demux(audio=0) if packet.pos is not None and packet.pos > start][
            20
        ]
    assert_refused(fast[:boundary], "cut short", "3.0 s")


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_streamed_wav_is_no_cut_wav(size: int) -> None:
    """Writers that cannot seek back leave these sizes in the header."""
    data = bytearray(WAV)
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    np.testing.assert_allclose(load_audio(bytes(data)), load_audio(WAV), atol=1e-6)


@pytest.mark.parametrize("size", [0x7FFFEFFF, 0x80000001, 2_764_800_000, 0xFFFFEFFE])
def test_a_large_wav_that_was_cut_short(size: int) -> None:
    data = bytearray(WAV)
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    assert_refused(bytes(data), "cut short", "promises")


def test_header_a_little_off_is_forgiven() -> None:
    data = bytearray(WAV)
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 2 * 8000 + 44)
    assert len(load_audio(bytes(data))) == 8000


@pytest.mark.parametrize("quiet_first", [True, False])
def test_mp3_without_length_is_heard_to_its_end(quiet_first: bool) -> None:
    """Of a variable-rate mp3 without its first, counting frame, libsndfile guesses the length from the bit rate."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(16000 * 5).astype(np.float32)
    halves = [np.zeros(16000 * 5, np.float32), noise]
    out = io.BytesIO()
    wave = np.concatenate(halves if quiet_first else halves[::-1])
    soundfile.write(out, wave, 16000, format="MP3", compression_level=0.5, bitrate_mode="VARIABLE")
    data = out.getvalue()
    second = data.index(data[:2], data.index(b"Xing"))
    for prefix in (b"", b"ID3\x04\x00\x00" + bytes([0, 0, 0, 20]) + b"TXXX Xing Info".ljust(20, b"\0")):
        assert abs(len(load_audio(prefix + data[second:])) / 16000 - 10) < 0.2


def test_rates_of_any_integer_type() -> None:
    wave = sound(4.0, rate=44_100)
    np.testing.assert_array_equal(load_audio((wave, np.int32(44_100))), load_audio((wave, 44_100)))


def test_names_that_only_look_like_a_home_folder_or_a_url(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file: ~nosuchuser"):
        load_audio("~nosuchuser-zz.wav")
    file = tmp_path / "a b.wav"
    file.write_bytes(encoded(sound(0.1), 16_000, "WAV"))
    assert load_audio(file.as_uri()).shape == (1600,)


def test_tensors_that_numpy_cannot_take() -> None:
    with pytest.raises(AudioError, match="samples must be numbers"):
        load_audio((torch.zeros(1600, requires_grad=True), 16_000))  # type: ignore[arg-type]
