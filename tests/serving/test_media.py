"""Recordings of strangers: decoded in other processes, under every limit, and nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import numpy as np
import psutil
import pytest
import soundfile

from qwen2_audio.errors import AudioError, TooLargeError, TooLongError
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.serving.fetch import Fetcher
from qwen2_audio.serving.formats import check_format, kind_of
from qwen2_audio.serving.media import Encoded, Link, Media
from qwen2_audio.serving.settings import Settings
from tests.serving.decoding import folders_of_decoders
from tests.serving.loopback import Names, ToLoopback, serving
from tests.tiny import sound

MIB = 1 << 20
T = TypeVar("T")


def file_of(seconds: float = 0.5, kind: str = "WAV", subtype: str | None = None, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, sound(seconds, rate=rate), rate, format=kind, subtype=subtype)
    return out.getvalue()


WAV = file_of()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Uploaded:
    """What a form's file looks like; counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.pieces: list[int] = []

    async def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.pieces.append(len(data))
        return data


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


def with_media(work: Callable[[Media], Awaitable[T]], fetcher: Fetcher | None = None, **given: object) -> T:
    """What `work` gives; afterwards no process and no folder is left."""

    async def run() -> T:
        media = Media(Settings(**given), fetcher)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(60):
                return await work(media)
        finally:
            await media.close()

    before, folders = set(psutil.Process().children()), folders_of_decoders()
    result = asyncio.run(run())
    assert set(psutil.Process().children()) <= before and folders_of_decoders() <= folders
    return result


def samples_of(part: AudioPart) -> np.ndarray:
    samples, rate = part.source  # type: ignore[misc]
    assert rate == 16_000 and samples.dtype == np.float32 and samples.flags.writeable
    return samples


def test_every_way_in_gives_what_load_audio_gives() -> None:
    files = [
        WAV,
        file_of(0.7, "FLAC", None, 44_100),
        file_of(0.6, "MP3", None, 22_050),
        file_of(0.5, "OGG", "OPUS", 48_000),
    ]

    async def work(media: Media) -> None:
        for data, name in zip(files, ("wav", "flac", "mp3", "opus"), strict=True):
            wanted = load_audio(data)
            url = f"DATA:audio/{name};base64,{text_of(data)}"
            for part in (
                await media.from_base64(text_of(data), name),
                await media.from_base64(text_of(data)),
                await media.from_url(url),
                await media.from_upload(Uploaded(data)),
                await media.from_stream(in_pieces(data), "it"),
            ):
                np.testing.assert_array_equal(samples_of(part), wanted)
            async with aclosing(media.stream_upload(Uploaded(data))) as blocks:
                np.testing.assert_array_equal(np.concatenate([block async for block in blocks]), wanted)

    with_media(work)


def test_what_a_decoder_says_of_a_recording_is_told() -> None:
    """As `load_audio` warns."""
    ogg = file_of(3.0, "OGG", "VORBIS")
    ogg = ogg[: ogg.rindex(b"OggS")]

    async def work(media: Media) -> None:
        for given, kept in (
            (lambda told: media.load([Encoded(text_of(WAV)), Encoded(text_of(ogg))], told), "recording 2"),
            (lambda told: media.from_url("data:audio/ogg;base64," + text_of(ogg), told), "the recording"),
            (lambda told: media.from_upload(Uploaded(ogg), told), "the file"),
            (lambda told: media.from_stream(in_pieces(ogg), "it", told), "it"),
        ):
            told: list[str] = []
            await given(told)  # type: ignore[no-untyped-call]
            assert told == [f"{kept} lacks the mark of its end; it may have been cut short"]
        told = []
        async with aclosing(media.stream_upload(Uploaded(ogg), told)) as blocks:
            assert sum([len(block) async for block in blocks]) > 16_000
        assert len(told) == 1

    with_media(work)


def test_an_attachment_waits_for_no_long_recording() -> None:
    async def work(media: Media) -> None:
        async with aclosing(media.stream_upload(Uploaded(file_of(30.0)))) as blocks:
            await anext(blocks)  # and no further: its windows are being answered
            assert len(samples_of(await media.from_upload(Uploaded(WAV)))) == 8000

    with_media(work, uploads=1)


def test_addresses_are_fetched() -> None:
    def answer(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(WAV)  # type: ignore[attr-defined]

    with serving(answer) as port:
        fetcher = Fetcher(Settings(), Names(), ToLoopback(port))
        part = with_media(lambda media: media.from_url("http://media.test/x.wav"), fetcher)
    np.testing.assert_array_equal(samples_of(part), load_audio(WAV))
    with pytest.raises(AudioError, match="fetches no addresses"):
        with_media(lambda media: media.from_url("http://media.test/x.wav"), fetch_urls=False)


def test_few_are_fetched_at_a_time() -> None:
    now = most = 0

    class Slow(Fetcher):
        async def fetch(self, url: str) -> bytes:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return WAV

    async def work(media: Media) -> None:
        await asyncio.gather(*(media.load([Link(f"http://media.test/{i}.{k}") for i in range(10)]) for k in range(3)))

    with_media(work, Slow(Settings()))
    assert 1 < most <= 16


def test_addresses_that_do_not_answer_leave_room_for_others() -> None:
    """Of a request few are fetched at a time; what is in the request itself needs no place."""

    class TarPit(Fetcher):
        async def fetch(self, url: str) -> bytes:
            if "pit" in url:
                await asyncio.sleep(60)
            return WAV

    async def work(media: Media) -> None:
        held = [
            asyncio.create_task(media.load([Link(f"http://pit.test/{i}.{k}") for i in range(16)])) for k in range(3)
        ]
        await asyncio.sleep(0.05)
        samples_of(await asyncio.wait_for(media.from_url("http://media.test/x.wav"), 10))
        held.append(asyncio.create_task(media.load([Link(f"http://pit.test/{i}.3") for i in range(16)])))
        await asyncio.sleep(0.05)
        samples_of(await asyncio.wait_for(media.from_url("data:audio/wav;base64," + text_of(WAV)), 10))
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    with_media(work, TarPit(Settings()))


def test_what_lies_fetched_is_bounded() -> None:
    """Decoders that are slow hold up fetching; no more than 32 files lie in memory."""
    fetched = 0

    class Quick(Fetcher):
        async def fetch(self, url: str) -> bytes:
            nonlocal fetched
            fetched += 1
            return WAV

    async def work(media: Media) -> int:
        async with media._clips._free:
            held = [
                asyncio.create_task(media.load([Link(f"http://a.test/{k}.{i}") for i in range(4)])) for k in range(12)
            ]
            await asyncio.sleep(0.1)
            lying = fetched
        await asyncio.gather(*held)
        return lying

    assert with_media(work, Quick(Settings()), decoders=1) == 32


def test_many_in_order_and_the_same_one_once() -> None:
    lengths = [0.3, 0.1, 0.2, 0.1, 0.3]
    clips = [Encoded(text_of(file_of(seconds)), "wav") for seconds in lengths]
    parts = with_media(lambda media: media.load(clips))
    assert [len(samples_of(part)) / 16_000 for part in parts] == lengths
    assert parts[0] is parts[4]
    assert with_media(lambda media: media.load([])) == []


REFUSED = {
    "no base64": (Encoded("@@@@"), "not valid base64"),
    "url-safe base64": (Encoded("_-_-"), "not valid base64"),
    "padding": (Encoded("AAA"), "not valid base64"),
    "lines": (Encoded(text_of(WAV)[:76] + "\n" + text_of(WAV)[76:]), "leave out line breaks"),
    "letters of elsewhere": (Encoded("éééé"), "not valid base64"),
    "a data URL": (Encoded("data:audio/wav;base64,AAAA"), "is a data URL"),
    "nothing": (Encoded(""), "empty"),
    "text": (Encoded(text_of(b"hello " * 99)), "not a recording"),
    "a wav called mp3": (Encoded(text_of(WAV), "mp3"), "begins like wav"),
    "an unknown format": (Encoded(text_of(WAV), "xyz"), "there is no format 'xyz'"),
    "half a file": (Encoded(text_of(WAV[: len(WAV) // 2])), "cut short"),
    "a bad data URL": (Link("data:audio/wav;base64,@@"), "not valid base64"),
    "no data URL": (Link("data:audio/wav"), "no comma"),
    "an empty data URL": (Link("data:,"), "empty"),
    "a long one without base64": (Link("data:audio/wav," + "%00" * 30_000), "without ;base64"),
    "a file": (Link("file:///etc/passwd"), "no address"),
    "a path": (Link("/etc/passwd"), "no address"),
    "this machine": (Link("http://127.0.0.1/x"), "public internet"),
}


def test_what_is_refused_in_one_line_each() -> None:
    async def work(media: Media) -> None:
        for name, (clip, word) in REFUSED.items():
            with pytest.raises(AudioError) as caught:
                await media.load([clip])
            assert word in str(caught.value), name
            assert "\n" not in str(caught.value) and "/tmp" not in str(caught.value)
        samples_of(await media.from_base64(text_of(WAV)))  # and goes on

    with_media(work)


def test_limits_of_number_length_and_size() -> None:
    clip = Encoded(text_of(WAV))

    async def work(media: Media) -> None:
        with pytest.raises(AudioError, match="4 recordings in the request; at most 3"):
            await media.load([clip] * 4)
        with pytest.raises(TooLongError, match=r"longer than 1.2 s together"):
            await media.load([clip] * 3)
        with pytest.raises(TooLongError, match=r"recording 2 is longer than 1 s"):
            await media.load([clip, Encoded(text_of(file_of(1.1)))])
        with pytest.raises(TooLargeError, match="larger than 1 MiB"):
            await media.from_base64("A" * (4 * -(-MIB // 3) + 4))
        with pytest.raises(TooLargeError, match="larger than 1 MiB"):
            await media.from_url("data:audio/wav;base64," + "A" * 2 * MIB)
        upload = Uploaded(bytes(4 * MIB))
        with pytest.raises(TooLargeError, match="the file is larger than 2 MiB"):
            await media.from_upload(upload)
        assert max(upload.pieces) == 64 * 1024 and sum(upload.pieces) <= 2 * MIB + 64 * 1024
        with pytest.raises(TooLargeError, match="it is larger than 1 MiB"):
            await media.from_stream(in_pieces(bytes(2 * MIB)), "it")
        for empty in (media.from_upload(Uploaded(b"")), media.from_stream(in_pieces(b""), "it")):
            with pytest.raises(AudioError, match="empty"):
                await empty
        with pytest.raises(TooLongError, match="longer than 3 s"):
            async for _ in media.stream_upload(Uploaded(file_of(3.5))):
                pass
        assert len(samples_of((await media.load([clip, clip]))[0])) == 8000

    limits = {"max_clips": 3, "max_request_seconds": 1.2, "max_clip_seconds": 1.0, "max_clip_mib": 1}
    with_media(work, **limits, max_upload_mib=2, max_upload_seconds=3.0)


def test_a_large_file_is_streamed_in_bounded_memory() -> None:
    """20 min: the decoder sees it through a view, and gives it away as fast as it is asked for."""
    out = io.BytesIO()
    soundfile.write(out, np.tile(sound(10.0), 120), 16_000, format="WAV")
    upload = Uploaded(out.getvalue())

    async def work(media: Media) -> int:
        count, own = 0, psutil.Process()
        before = own.memory_info().rss
        async with aclosing(media.stream_upload(upload)) as blocks:
            async for block in blocks:
                count += len(block)
        assert own.memory_info().rss - before < 32 * MIB  # as float32 it is 73 MiB
        return count

    assert with_media(work) == 1200 * 16_000


def test_a_bomb_is_stopped_in_the_decoder() -> None:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 96_000, 8, "PCM_16", format="FLAC") as file:
        for _ in range(30):
            file.write(np.zeros((96_000, 8), np.int16))

    async def work(media: Media) -> None:
        with pytest.raises(TooLargeError, match="decodes to more than 16 MiB"):
            await media.from_base64(text_of(out.getvalue()), "flac")

    with_media(work, max_pcm_mib=16)


# what a file is


def test_kinds_of_files() -> None:
    kinds = [
        ("WAV", None),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("MP3", None),
        ("AIFF", None),
        ("AU", None),
        ("CAF", None),
    ]
    assert [kind_of(file_of(0.1, *kind)) for kind in kinds] == ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf"]
    assert kind_of(b"") is None and kind_of(b"\xff") is None and kind_of(b"hello") is None
    assert kind_of(b"\xff\xf1\x50\x80") == "aac"


def test_formats_under_their_many_names() -> None:
    for said in ("wav", "WAV", "audio/wav", "audio/x-wav", "audio/wav; rate=16000", ""):
        check_format(WAV, said, "it")
    check_format(b"ID3" + WAV, "flac", "it")  # a tag may stand before anything
    check_format(b"?" * 20, "mp3", "it")  # the decoder will say
