"""Files that decoders take lightly: cut short, joined, damaged, streamed, or naming other files."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from qwen2_audio.errors import AudioError, AudioWarning
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.headers import promised_bytes
from tests.tiny import sound

RATE = 48_000


def written(kind: str, subtype: str | None = None, *, seconds: float = 3.0) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, sound(seconds, rate=RATE), RATE, format=kind, subtype=subtype)
    return out.getvalue()


def webm(seconds: float = 3.0, *, gap: int = 0, kind: str = "webm", codec: str = "libopus") -> bytes:
    """A file of FFmpeg's, with `gap` missing samples in the middle of its time stamps."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        halves = np.split(sound(seconds, rate=RATE), 2)
        for number, half in enumerate(halves):
            frame = av.AudioFrame.from_ndarray(half[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            frame.pts = number * (len(half) + gap)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return out.getvalue()


def from_kind(kind: str) -> bytes:
    """3 s of sound in a file of FFmpeg's, or of libsndfile's where the kind is TYPE/SUBTYPE."""
    if "/" in kind:
        return written(*kind.split("/"))
    return webm(kind=kind, codec="pcm_s16le" if kind == "avi" else "libopus")


def heard_seconds(data: bytes) -> float:
    return len(load_audio(data)) / 16_000


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize(
    "kind",
    [
        "OGG/VORBIS", "OGG/OPUS", "AIFF/PCM_16", "AU/PCM_16", "CAF/PCM_16", "W64/PCM_16", "RF64/PCM_16", "NIST/PCM_16",
        "NIST/ULAW", "webm", "avi",
    ],
)  # fmt: skip
def test_cut_short_is_never_heard_shorter(kind: str, share: float) -> None:
    data = from_kind(kind)
    assert heard_seconds(data) == pytest.approx(3, abs=0.1)
    with pytest.raises(AudioError, match="cut short") as caught:
        load_audio(data[: int(share * len(data))])
    assert "\n" not in str(caught.value)


def test_avi_and_nist_that_do_not_tell_their_size_are_heard() -> None:
    data = webm(kind="avi", codec="pcm_s16le")
    for size in (0, 0xFFFFFFFF):
        assert heard_seconds(data[:4] + struct.pack("<I", size) + data[8:]) == pytest.approx(3, abs=0.1)
    assert promised_bytes(b"NIST_1A\n   1024\nchannel_count -i 1\nend_head\n") == 0
    compressed = b"sample_count -i 48000\nsample_n_bytes -i 2\nsample_coding -s26 pcm,embedded-shorten-v2.00\n"
    assert promised_bytes(b"NIST_1A\n   1024\n" + compressed) == 0
    assert promised_bytes(b"NIST_1A\n   1024\nsample_count -i 48000\nsample_n_bytes -i 2\n") == 1024 + 96000


def test_an_ogg_without_its_last_page_is_suspicious() -> None:
    data = written("OGG", "VORBIS")
    with pytest.warns(AudioWarning, match="lacks the mark of its end"):
        load_audio(data[: data.rindex(b"OggS")])


@pytest.mark.parametrize("kind", ["OGG/VORBIS", "OGG/OPUS", "MP3/MPEG_LAYER_III"])
def test_joined_files_are_heard_whole(kind: str) -> None:
    data = written(*kind.split("/"), seconds=6.0)
    assert heard_seconds(data + data) == pytest.approx(12, abs=0.2)


def test_damaged_mp3_is_heard_with_a_warning() -> None:
    data = bytearray(written("MP3", "MPEG_LAYER_III"))
    second = data.index(data[:2], data.index(b"Xing"))
    data = data[second:]  # without the first, counting frame
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    with pytest.warns(AudioWarning, match="damaged in"):
        assert heard_seconds(bytes(data)) == pytest.approx(3, abs=0.3)


def test_flac_written_to_a_pipe_is_heard() -> None:
    data = bytearray(written("FLAC"))
    data[21] &= 0xF0  # the number of samples, 36 bits of STREAMINFO: unknown
    data[22:26] = bytes(4)
    assert heard_seconds(bytes(data)) == pytest.approx(3)


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("webm", "libopus")])
def test_a_gap_in_the_time_stamps_is_no_cut(kind: str, codec: str) -> None:
    assert heard_seconds(webm(4.0, gap=RATE, kind=kind, codec=codec)) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:1,\n{}\n", "v=0\no=- 0 0 IN IP4 127.0.0.1\n"]
)
def test_no_file_opens_another(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.wav").write_bytes(written("WAV"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError, match="not a recording"):
        load_audio(text.format("s.wav").encode())


@pytest.mark.parametrize("rate", [1, 2_000_000])
def test_absurd_rates(rate: int) -> None:
    data = bytearray(written("WAV"))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(AudioError, match="sampling rate"):
        load_audio(bytes(data))
