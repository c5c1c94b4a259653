"""The page beside the HTTP API: `mount_ui` puts it on the service's application."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.ui.clips import Clips
from qwen2_audio.serving.ui.environment import admit_uploads, prepare
from qwen2_audio.serving.ui.hearing import Hearing
from qwen2_audio.serving.ui.lock import Locked
from qwen2_audio.serving.ui.sessions import Sessions
from qwen2_audio.serving.ui.texts import LANGUAGES, Language, language_of, texts
from qwen2_audio.serving.ui.voices import Voices, installed
from qwen2_audio.serving.ui.wishes import LONGEST_ANSWER

_FOLDER = Path(str(files("qwen2_audio.serving.ui")))
_SCRIPTS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Spoken(BaseModel):
    """A text that is to be read aloud."""

    text: str
    voice: str


def mount_ui(
    app: FastAPI, backend: Backend, settings: Settings, media: Media, *, path: str = "/", language: Language = "en"
) -> None:
    """Add the page to an application, at `path`; mounted at "/", it must come after all other routes.

    Args:
        language: what the page speaks to browsers that ask for neither English nor Chinese.
    """
    folder = prepare()
    import gradio as gr

    from qwen2_audio.serving.ui.gates import narrow
    from qwen2_audio.serving.ui.page import create_page
    from qwen2_audio.serving.ui.theme import theme

    clips = Clips()
    hearing = Hearing(media, clips, settings)
    voices = installed()
    page = create_page(backend, media, hearing, Sessions(language), language, voices.names)
    app.include_router(_routes(hearing, voices), prefix=path.rstrip("/") + "/page")
    gr.mount_gradio_app(
        app,
        page,
        path=path,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        max_file_size=settings.max_upload_mib * 2**20,
        theme=theme(),
        head=_head(language, path, voices.names),
    )
    narrow(page)
    admit_uploads()
    route: Any = app.routes[-1]
    route.app = Locked(route.app)
    _remove_in_the_end(app, folder)


def _remove_in_the_end(app: FastAPI, folder: Path) -> None:
    """Add to the application's end that the folder goes."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        try:
            async with inner(app) as state:
                yield state
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    app.router.lifespan_context = lifespan


def _head(language: Language, path: str, voices: Sequence[str]) -> str:
    """What the page's head holds: all texts, the style and the scripts.

    Gradio puts it there when the page runs already, and so waits for no script that is fetched: what others need stands in it.
    """
    known = {
        "texts": {name: texts(name).entries for name in LANGUAGES},
        "preset": language,
        "service": "../" * path.strip("/").count("/")
        + ("../" if path.strip("/") else "./"),  # where /v1 is, seen from here
        "voices": list(voices),
        "voice": "",
        "wishes": {"model": "", "system": "", "temperature": "", "length": LONGEST_ANSWER},
    }
    said = json.dumps(known, ensure_ascii=False).replace("<", "\\u003c")
    boot = (_FOLDER / "static" / "boot.js").read_text("utf-8")
    return (
        f"<script>window.qwenAudio = {said};</script><script>{boot}</script>"
        '<link rel="icon" href="page/static/icon.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="page/static/page.css">'
        '<script type="module" src="page/static/page.js"></script>'
    )


def _spoken_name(request: Request) -> str:
    """What to call the visitor's voice, in the language of the page."""
    return texts(language_of(request.headers.get("accept-language"))).say("clip.spoken")


def _stretch(sound: bytes, wanted: str) -> Response:
    """A wav file, or the one stretch of it that a `Range` header asks for: players seek by it, Safari's cannot do without."""
    headers, size = {**_PRIVATE, "Accept-Ranges": "bytes"}, len(sound)
    found = _RANGE.fullmatch(wanted)
    if found is None:
        return Response(sound, media_type="audio/wav", headers=headers)
    first, last = found[1], found[2]
    start = int(first) if first else max(size - int(last or 0), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Response(sound[start:end], 206, media_type="audio/wav", headers=headers)


def _routes(hearing: Hearing, voices: Voices) -> APIRouter:
    """Scripts and styles, the visitors' clips, and where the microphone's recordings go."""
    router = APIRouter(include_in_schema=False)

    @router.get("/static/{name}")
    async def static(name: str) -> FileResponse:
        file = _FOLDER / "static" / name
        if "/" in name or file.suffix not in _SCRIPTS or not file.is_file():
            raise HTTPException(404)
        return FileResponse(file, media_type=_SCRIPTS[file.suffix], headers={"Cache-Control": "no-cache"})

    @router.get("/clips/{token}.png")
    async def picture(token: str) -> Response:
        clip = hearing.clips.get(token)
        if clip is None:
            raise HTTPException(404)
        return Response(clip.image, media_type="image/png", headers=_PRIVATE)

    @router.get("/clips/{token}.wav")
    async def sound(token: str, request: Request) -> Response:
        clip = hearing.clips.get(token)
        if clip is None:
            raise HTTPException(404)
        return _stretch(clip.wav(), request.headers.get("range", ""))

    @router.post("/recordings")
    async def record(request: Request) -> Response:
        try:
            clip = await hearing.recording(request.stream(), _spoken_name(request))
        except Qwen2AudioError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"token": clip.token, "seconds": clip.seconds}, headers=_PRIVATE)

    @router.post("/speech")
    async def speak(wish: Spoken) -> Response:
        try:
            return Response(await voices.speak(wish.voice, wish.text), media_type="audio/wav", headers=_PRIVATE)
        except Qwen2AudioError as error:
            return JSONResponse({"error": str(error)}, 400)

    return router
