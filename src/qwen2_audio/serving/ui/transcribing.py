"""The transcribe tab: a long recording in, segments as they come, files out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from qwen2_audio.errors import ConversationError, Qwen2AudioError, UsageError
from qwen2_audio.longform.segments import Segment
from qwen2_audio.longform.subtitles import FORMATS, write
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.ui.markup import progress
from qwen2_audio.serving.ui.opening import open_session
from qwen2_audio.serving.ui.sessions import Session, Sessions
from qwen2_audio.serving.ui.texts import Texts, texts
from qwen2_audio.serving.ui.transcript import Task, Transcript
from qwen2_audio.serving.ui.wishes import chosen

View = tuple[Any, ...]
"""New states of file, start, stop, progress, transcript."""

_MOST_SEGMENTS, _MOST_CHARACTERS = 100_000, 5_000
_TYPES = {"json": "application/json", "vtt": "text/vtt"}


class Transcribing:
    """The events of the transcribe tab."""

    def __init__(self, backend: Backend, media: Media, sessions: Sessions) -> None:
        self._backend = backend
        self._media = media
        self._sessions = sessions

    async def start(self, path: str | None, task: Task, model: str, request: gr.Request) -> AsyncIterator[View]:
        """Write down the uploaded file, which is removed in the end."""
        session = self._session(request)
        said = texts(session.language)
        if not path:
            yield gr.skip(), gr.skip(), gr.skip(), progress(said.say("transcribe.none"), -1, problem=True), gr.skip()
            return
        try:
            card = chosen(self._backend.models, model)
        except Qwen2AudioError as error:
            yield gr.skip(), gr.skip(), gr.skip(), progress(str(error), -1, problem=True), gr.skip()
            return
        file = Path(path)
        try:
            session.transcript.stop()
            transcript = session.transcript = Transcript(file.stem)
            yield gr.skip(), *_buttons(running=True), progress(said.say("transcribe.reading"), None), _told(transcript)
            stream = transcript.write(self._backend, card, self._media, file, task)
            count = 0
            async with aclosing(stream) as beats:
                async for _ in beats:
                    news = len(transcript.segments) > count
                    count = len(transcript.segments)
                    yield (
                        gr.skip(),
                        gr.skip(),
                        gr.skip(),
                        _going(transcript, said),
                        _told(transcript) if news else gr.skip(),
                    )
            yield gr.update(value=None), *_buttons(running=False), _gone(transcript, said), _told(transcript)
        except Qwen2AudioError as error:
            yield gr.update(value=None), *_buttons(running=False), progress(str(error), -1, problem=True), gr.skip()
        finally:
            file.unlink(missing_ok=True)

    def stop(self, request: gr.Request) -> None:
        """End what is being written; what is there stays."""
        self._session(request).transcript.stop()

    def download(self, event: gr.EventData, request: gr.Request) -> str | None:
        """The segments, as the visitor has corrected them, as a file for the browser."""
        try:
            kind, title, segments, seconds = _wanted(event._data)
        except Qwen2AudioError as error:
            gr.Warning(str(error))
            return None
        text = write(segments, kind, duration=seconds)
        file = {"name": f"{title}.{kind}", "type": _TYPES.get(kind, "text/plain"), "text": text}
        return json.dumps({**file, "at": time.monotonic_ns()})  # else the same file is no news to the page

    def _session(self, request: gr.Request) -> Session:
        return open_session(self._sessions, request)


def _wanted(data: Any) -> tuple[Any, str, list[Segment], float]:
    """What the browser asks for; it could be anything.

    Raises:
        UsageError, ConversationError: it makes no sense.
    """
    if data.get("format") not in FORMATS:
        raise UsageError(f"there is no format {data.get('format')!r:.20}; there are {', '.join(FORMATS)}")
    try:
        segments = [
            Segment(float(each["start"]), float(each["end"]), str(each["text"]).strip()) for each in data["segments"]
        ]
        duration = float(data.get("duration") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise ConversationError("the segments cannot be read; reload the page") from error
    if not all(map(math.isfinite, (duration, *(time for each in segments for time in (each.start, each.end))))):
        raise ConversationError("the times of the segments are no numbers; reload the page")
    if len(segments) > _MOST_SEGMENTS or any(len(each.text) > _MOST_CHARACTERS for each in segments):
        most = f"at most {_MOST_SEGMENTS} segments of {_MOST_CHARACTERS} characters"
        raise ConversationError(f"{most} can be written to a file; delete some, or split them")
    return data["format"], Path(str(data.get("name") or "transcript")).name, segments, duration


def _buttons(*, running: bool) -> tuple[Any, Any]:
    return gr.update(interactive=not running), gr.update(visible=running)


def _going(transcript: Transcript, said: Texts) -> str:
    if not transcript.segments:
        return progress(said.say("transcribe.reading"), None)
    done, whole = _clock(transcript.segments[-1].end), _clock(transcript.seconds)
    return progress(said.say("transcribe.progress", done=done, whole=whole), transcript.share)


def _gone(transcript: Transcript, said: Texts) -> str:
    if transcript.problem:
        return progress(said.say("transcribe.failed", problem=transcript.problem), -1, problem=True)
    if transcript.stopped:
        return progress(said.say("transcribe.stopped"), -1)
    count, length = str(len(transcript.segments)), _clock(transcript.seconds)
    return progress(" · ".join([said.say("transcribe.done", count=count, length=length), *transcript.remarks]), -1)


def _told(transcript: Transcript) -> str:
    segments = [
        {"start": round(segment.start, 2), "end": round(segment.end, 2), "text": segment.text}
        for segment in transcript.segments
    ]
    told = {"name": transcript.name, "title": transcript.title, "duration": transcript.seconds, "segments": segments}
    return json.dumps(told, ensure_ascii=False)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
