"""Decoders that misbehave: killed, replaced, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import numpy as np
import psutil
import pytest

from qwen2_audio.errors import AudioError
from qwen2_audio.processing.limits import DecodeLimits
from qwen2_audio.serving import decoders
from qwen2_audio.serving.decoders import DecoderPool
from tests.serving.decoding import folders_of_decoders
from tests.serving.recordings import flac
from tests.tiny import sound

MIB = 1 << 20
FLAC = flac(sound(0.5))


class Pool:
    """A pool of one, and what it decodes."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.pool = DecoderPool(1, timeout, 1024, whole=True)

    async def decode(self, data: bytes = FLAC) -> np.ndarray:
        async def pieces():  # type: ignore[no-untyped-def]
            yield data

        async with aclosing(self.pool.decode(pieces(), DecodeLimits(), "it")) as blocks:
            return np.concatenate([block async for block in blocks])


def decoding() -> list[psutil.Process]:
    """All decoders of this process, the newest last; a server that other tests share has some too."""
    found = [p for p in psutil.Process().children() if "decoder_process" in " ".join(p.cmdline())]
    return sorted(found, key=psutil.Process.create_time)


def pooled(work: Callable[[Pool], Awaitable[None]], timeout: float = 30.0) -> None:
    before, folders = decoding(), folders_of_decoders()

    async def run() -> None:
        pool = Pool(timeout)
        try:
            async with asyncio.timeout(60):
                await work(pool)
        finally:
            await pool.pool.close()

    asyncio.run(run())
    assert set(decoding()) <= set(before) and folders_of_decoders() <= folders


def the_process() -> psutil.Process:
    return decoding()[-1]


def test_a_decoder_is_kept_and_replaced_when_it_died() -> None:
    async def work(pool: Pool) -> None:
        await pool.decode()
        first = the_process()
        await pool.decode()
        with pytest.raises(AudioError, match="not a recording"):
            await pool.decode(b"nothing" * 100)
        assert the_process().pid == first.pid
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(AudioError, match="it makes the decoder fail"):
            await pool.decode()
        assert len(await pool.decode()) == 8000
        assert the_process().pid != first.pid

    pooled(work)


def test_a_decoder_that_died_while_it_waited_does_no_harm() -> None:
    async def work(pool: Pool) -> None:
        await pool.decode()
        first = the_process()
        [waiting] = pool.pool._idle
        first.kill()
        while waiting.alive:
            await asyncio.sleep(0.01)
        assert len(await pool.decode()) == 8000
        assert the_process().pid != first.pid

    pooled(work)


def test_a_decoder_that_hangs_is_ended() -> None:
    async def work(pool: Pool) -> None:
        await pool.decode()
        hung = the_process()
        hung.suspend()
        with pytest.raises(AudioError, match="takes too long to decode"):
            await pool.decode()
        assert not hung.is_running()
        assert len(await pool.decode()) == 8000

    pooled(work, timeout=3.0)


def test_cancelling_ends_the_work_at_once_and_frees_the_place() -> None:
    async def work(pool: Pool) -> None:
        await pool.decode()
        working = the_process()
        working.suspend()
        task = asyncio.create_task(pool.decode())
        waiting = asyncio.create_task(pool.decode())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not working.is_running()
        assert len(await waiting) == 8000

    pooled(work)


def test_a_large_file_is_removed_when_its_sender_leaves() -> None:
    before = folders_of_decoders()

    async def endless():  # type: ignore[no-untyped-def]
        yield bytes(9 * MIB)
        await asyncio.Event().wait()

    async def work(pool: Pool) -> None:
        task = asyncio.create_task(anext(pool.pool.decode(endless(), DecodeLimits(), "it")))
        while not any((folder / "recording").exists() for folder in folders_of_decoders() - before):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert folders_of_decoders() == before
        assert len(await pool.decode()) == 8000

    pooled(work)


def test_a_decoder_is_replaced_after_many_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_MAX_JOBS", 2)

    async def work(pool: Pool) -> None:
        await pool.decode()
        first = the_process().pid
        await pool.decode()
        await pool.decode()
        assert the_process().pid != first

    pooled(work)


def test_a_decoder_knows_no_secrets_and_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN2_AUDIO_API_KEYS", "very-secret-key")

    async def work(pool: Pool) -> None:
        await pool.decode()
        process = the_process()
        assert "very-secret-key" not in str(process.environ())
        assert process.rlimit(psutil.RLIMIT_AS)[0] == 1024 * MIB
        assert process.rlimit(psutil.RLIMIT_CORE)[0] == 0

    pooled(work)
