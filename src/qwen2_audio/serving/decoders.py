"""Decoding in processes of its own: a few, kept for the next recording, killed and replaced when one misbehaves."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.errors import AudioError
from qwen2_audio.processing.limits import DecodeLimits
from qwen2_audio.serving.backend import OverloadedError
from qwen2_audio.serving.decoder_process import ERRORS

_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
"""Of the environment; the rest, keys above all, is not a decoder's business."""
_START_SECONDS = 60.0
_KEEP = 2
"""Processes that wait for work."""
_LEFT = 1 << 16
_MAX_JOBS = 200
"""Recordings after which a process is replaced: decoders leak."""


class DecoderPool:
    """At most `count` recordings are decoded at a time; more wait.

    Args:
        timeout: seconds for a `whole` recording, or else for the next stretch of it.
        memory_mib: that one process may take.
    """

    def __init__(self, count: int, timeout: float, memory_mib: int, *, whole: bool) -> None:
        self._timeout, self._whole, self._memory_mib = timeout, whole, memory_mib
        self._free = asyncio.Semaphore(count)
        self._idle: list[_Decoder] = []
        self._busy: set[_Decoder] = set()
        self._closed = False

    async def start(self) -> None:
        """Start one process, so that the first recording need not wait for it."""
        async with self._decoder():
            pass

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for decoder in (*self._idle, *self._busy):
            await decoder.end()
        self._idle.clear()

    async def decode(
        self, pieces: AsyncIterator[bytes], limits: DecodeLimits, name: str, told: list[str] | None = None
    ) -> AsyncGenerator[NDArray[np.float32]]:
        """The sound of a file: float32 [samples] at 16 kHz, blocks of at most 20 s, as they are asked for.

        Args:
            told: to it is added, at the end, what is to be said of the file: that some of it is damaged, for instance.

        Closing the generator, or cancelling the task that waits for it, ends the work at once.

        Raises:
            TooLongError, TooLargeError, AudioError: see `stream_audio`; also where the decoder fails or takes too long.
        """
        async with self._decoder() as decoder:
            try:
                alarm = math.ceil(self._timeout) + 5  # should this process be gone by then
                await decoder.give({"limits": astuple(limits), "name": name, "alarm": alarm}, pieces)
                now = asyncio.get_running_loop().time
                end = now() + self._timeout
                while True:
                    async with asyncio.timeout_at(end if self._whole else now() + self._timeout):
                        block = await decoder.block([] if told is None else told)
                    if block is None:
                        return
                    yield block
            except TimeoutError:
                raise AudioError(f"{name} takes too long to decode; re-export it as wav or flac") from None
            except (asyncio.IncompleteReadError, ConnectionError):
                raise AudioError(f"{name} makes the decoder fail; it is damaged: re-export it") from None

    @asynccontextmanager
    async def _decoder(self) -> AsyncIterator[_Decoder]:
        async with self._free:
            decoder = await self._living() or await _Decoder.start(self._memory_mib)
            self._busy.add(decoder)
            try:
                yield decoder
            finally:
                self._busy.discard(decoder)
                if decoder.ready and not self._closed and len(self._idle) < _KEEP:
                    self._idle.append(decoder)
                else:
                    await decoder.end()

    async def _living(self) -> _Decoder | None:
        """One of those that wait; those whose process has ended meanwhile are put away."""
        while self._idle:
            decoder = self._idle.pop()
            if decoder.alive:
                return decoder
            await decoder.end()
        return None


class _Decoder:
    """One process, and whether it can take another recording."""

    def __init__(self, process: Process, folder: str) -> None:
        self._process, self._folder = process, folder
        self._jobs = 0
        self._working = False

    @classmethod
    async def start(cls, memory_mib: int) -> _Decoder:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "MALLOC_ARENA_MAX": "2"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        folder = ""
        try:
            folder = tempfile.mkdtemp(prefix="qwen2-audio-")
            command = (sys.executable, "-m", "qwen2_audio.serving.decoder_process", str(memory_mib), folder)
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OverloadedError(f"no decoder can be started ({error.strerror}); try again in a moment") from error
        decoder = cls(process, folder)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await decoder._read()
        except (TimeoutError, asyncio.IncompleteReadError):
            await decoder.end()
            raise OverloadedError("a decoder does not start; try again in a moment") from None
        except BaseException:
            await decoder.end()
            raise
        return decoder

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def ready(self) -> bool:
        return not self._working and self._jobs < _MAX_JOBS

    async def give(self, job: dict[str, object], pieces: AsyncIterator[bytes]) -> None:
        """Hand over a job and its file."""
        self._working = True
        self._jobs += 1
        await self._write(json.dumps(job).encode())
        async for piece in pieces:
            await self._write(piece)
        await self._write(b"")

    async def block(self, told: list[str]) -> NDArray[np.float32] | None:
        """The next stretch of sound; None at the end. Warnings are added to `told`."""
        while True:
            kind, data = await self._read()
            if kind == b"B":
                return np.frombuffer(bytearray(data), np.float32)  # of bytes it could not be written to
            if kind == b"W":
                told.append(data.decode())
                continue
            self._working = False
            if kind == b"E":
                error, message = json.loads(data)
                raise ERRORS[error](message)
            return None

    async def end(self) -> None:
        """End the process, whatever it does, and remove what it has left."""
        if self._process.returncode is None:
            self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.shield(self._clear())

    async def _clear(self) -> None:
        if self._process.stdout is not None:  # what is left in the pipe would keep the end from being noticed
            with suppress(RuntimeError):  # somebody else reads it to its end
                while await self._process.stdout.read(_LEFT):
                    pass
        await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _write(self, data: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(len(data).to_bytes(4, "big") + data)
            await self._process.stdin.drain()

    async def _read(self) -> tuple[bytes, bytes]:
        if self._process.stdout is None:
            raise BrokenPipeError
        head = await self._process.stdout.readexactly(5)
        return head[:1], await self._process.stdout.readexactly(int.from_bytes(head[1:], "big"))
