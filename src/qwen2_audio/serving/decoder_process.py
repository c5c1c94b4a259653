"""The process in which recordings of strangers are decoded: `python -m qwen2_audio.serving.decoder_process MIB FOLDER`.

Decoders are large programs in C that read hostile bytes. Here one that crashes, runs on or asks for all memory takes only
itself along: little memory, no files written, no secrets in the environment, an alarm that ends it.

FOLDER is for recordings too large to be held; whoever starts the process removes it, however that ends.

In: messages of 4 bytes of length and so many bytes: a job in JSON, then the file in pieces, then an empty one.
Out: messages of a letter, 4 bytes of length and so many bytes: Ready, Block (float32 samples), Warning, Error, Done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from qwen2_audio.errors import AudioError, TooLargeError, TooLongError
from qwen2_audio.processing.audio import stream_audio
from qwen2_audio.processing.limits import DecodeLimits

IN_MEMORY = 8 << 20
"""Files up to this size are held; larger ones lie in the folder until the job is done."""
ERRORS = {error.__name__: error for error in (AudioError, TooLargeError, TooLongError)}


def main() -> None:
    """Decode one recording after the other until the input ends."""
    memory, large = int(sys.argv[1]), Path(sys.argv[2]) / "recording"
    source, out = sys.stdin.buffer, sys.stdout.buffer
    import av  # now, not in the first job, and before memory is short
    import soundfile
    import soxr

    _confine(memory)
    _send(out, b"R", f"{av.__version__} {soundfile.__version__} {soxr.__version__}".encode())
    while True:
        head = _read(source)
        if not head:
            return
        try:
            _answer(source, out, json.loads(head), large)
        finally:
            large.unlink(missing_ok=True)


def _confine(mib: int) -> None:
    try:
        import resource
    except ImportError:  # not on this system
        return
    for limit, value in ((resource.RLIMIT_AS, mib << 20), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if hard < 0 else min(value, hard),) * 2)


def _answer(source: BinaryIO, out: BinaryIO, job: dict[str, object], path: Path) -> None:
    """Read a file, decode it, say what is in it."""
    seconds = int(str(job["alarm"]))
    held: bytes | Path = _receive(source, path)
    try:
        limits = DecodeLimits(*job["limits"])  # type: ignore[misc]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            _alarm(seconds)
            for block in stream_audio(held, limits, str(job["name"])):
                _alarm(0)  # whoever listens may take their time
                _send(out, b"B", block.tobytes())
                _alarm(seconds)
        for warning in told:
            _send(out, b"W", str(warning.message).encode())
        _send(out, b"D", b"")
    except AudioError as error:
        _send(out, b"E", json.dumps([type(error).__name__, str(error)]).encode())
    except MemoryError:
        text = f"{job['name']} takes too much memory to decode; re-export it"
        _send(out, b"E", json.dumps(["AudioError", text]).encode())
    finally:
        _alarm(0)


def _receive(source: BinaryIO, path: Path) -> bytes | Path:
    held = bytearray()
    file: BinaryIO | None = None
    try:
        while piece := _read(source):
            held += piece
            if len(held) > IN_MEMORY:
                file = file or path.open("wb")
                file.write(held)
                held.clear()
        if file is None:
            return bytes(held)
        file.write(held)
        return path
    finally:
        if file is not None:
            file.close()


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)  # unanswered, it ends the process, also where a decoder never returns


def _read(source: BinaryIO) -> bytes:
    head = source.read(4)
    if len(head) < 4:  # nobody is there any more
        os._exit(0)
    return source.read(int.from_bytes(head, "big"))


def _send(out: BinaryIO, kind: bytes, data: bytes) -> None:
    out.write(kind + len(data).to_bytes(4, "big"))
    out.write(data)
    out.flush()


if __name__ == "__main__":
    main()
