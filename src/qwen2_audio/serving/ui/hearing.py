"""Recordings from visitors to clips: everything passes the limits of `Media`, no file is left behind."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

from qwen2_audio.errors import ConversationError, TooLongError
from qwen2_audio.processing.conversation import AUDIO_SUFFIXES, url_path
from qwen2_audio.serving.media import Media, check_count
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.ui.chat import Chat, Turn
from qwen2_audio.serving.ui.clips import WAITING_SECONDS, Clip, Clips, new_clip
from qwen2_audio.serving.ui.history import read
from qwen2_audio.serving.ui.uploads import Opened

_ADDRESS = re.compile(r"https?://[^\s<>\"]*[^\s<>\".,;!?)]")


class Hearing:
    """Decodes what visitors upload, paste or speak."""

    def __init__(self, media: Media, clips: Clips, settings: Settings) -> None:
        self._media = media
        self.clips = clips
        self._settings = settings

    def check(self, turns: Sequence[Turn]) -> None:
        """
        Raises:
            AudioError, ConversationError: a conversation that is to be answered is larger than the settings allow.
        """
        check_count(len(turns[-1].clips), self._settings.max_clips)
        # the others are left out of what is asked
        asked = [turn for turn in turns if (turn.answer and not turn.gone) or turn is turns[-1]]
        longest, most = self._settings.max_request_seconds, self._settings.max_text_chars
        if sum(turn.seconds for turn in asked) > longest:
            raise TooLongError(f"the recordings are longer than {longest:g} s together; clear the conversation")
        if sum(len(turn.text) + len(turn.answer) for turn in asked) > most:
            raise ConversationError(f"the conversation has more than {most} characters; clear it")

    def bound(self, chat: Chat) -> None:
        """Keep no more of a conversation's recordings than can be asked about."""
        chat.bound(self._settings.max_request_seconds)

    async def files(self, paths: Sequence[str]) -> tuple[Clip, ...]:
        """Uploaded files, in order; they are removed, whether they can be heard or not.

        Raises:
            AudioError, TooLargeError: one cannot be heard, or there are too many.
        """
        try:
            check_count(len(paths), self._settings.max_clips)
            return tuple([await self._file(Path(path)) for path in paths])
        finally:
            for path in paths:
                with suppress(OSError):
                    os.unlink(path)

    async def _file(self, path: Path) -> Clip:
        told: list[str] = []
        async with Opened(path) as file:
            part = await self._media.from_upload(file, told)
        return self.clips.add(await asyncio.to_thread(new_clip, part, path.name, told))

    async def recording(self, body: AsyncIterator[bytes], name: str) -> Clip:
        """What the microphone heard, as a request brings it; held until a session claims it.

        Raises:
            AudioError, TooLargeError: it cannot be heard.
        """
        told: list[str] = []
        part = await self._media.from_stream(body, "the recording", told)
        clip = self.clips.wait(await asyncio.to_thread(new_clip, part, name, told))
        asyncio.get_running_loop().call_later(WAITING_SECONDS + 1, self.clips.sweep)
        return clip

    async def conversation(self, path: str) -> list[Turn]:
        """The turns of an uploaded file that the page saved once; the file is removed.

        Raises:
            ConversationError, AudioError, TooLargeError: it cannot be read.
        """
        file = Path(path)
        try:
            return await read(await asyncio.to_thread(file.read_text, "utf-8", "replace"), self._media, self.clips)
        finally:
            file.unlink(missing_ok=True)

    async def addresses(self, text: str) -> tuple[str, tuple[Clip, ...]]:
        """Fetch the recordings whose addresses stand in a text, and give the text without them.

        An address counts as a recording's when its path ends as one, or when nothing else stands in the text.
        """
        found = [
            address
            for address in _ADDRESS.findall(text)
            if address == text.strip() or Path(url_path(address)).suffix.lower() in AUDIO_SUFFIXES
        ]
        check_count(len(found), self._settings.max_clips)
        clips = []
        for address in found:
            told: list[str] = []
            part = await self._media.from_url(address, told)
            name = Path(url_path(address)).name or address
            clips.append(self.clips.add(await asyncio.to_thread(new_clip, part, name, told)))
            text = text.replace(address, "", 1)
        return text.strip(), tuple(clips)
