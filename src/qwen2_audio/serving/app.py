"""`create_app`: the routes, the guards around them, and the backend's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from qwen2_audio import __version__
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.error_handlers import handle_errors
from qwen2_audio.serving.guard import protect
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.metrics import MeasuredBackend, Metrics
from qwen2_audio.serving.routes import audio, chat, completions, models, ops, realtime
from qwen2_audio.serving.settings import Settings

_DESCRIPTION = (
    "Questions to recordings, conversations, transcription: Qwen2-Audio in the shapes of OpenAI's API. "
    "Unknown fields are refused with the nearest name, never ignored."
)


def create_app(backend: Backend, settings: Settings) -> FastAPI:
    """The server, ready for uvicorn.

    It starts and closes the backend. While the backend is starting /health answers already, questions get 503;
    `app.state.starting` is the task that starts it, which ends with the error if that fails.
    """
    media = Media(settings)
    metrics = Metrics(backend)
    measured = MeasuredBackend(backend, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await media.start()
        app.state.starting = asyncio.create_task(measured.start())
        try:
            yield
        finally:
            app.state.starting.cancel()
            await asyncio.gather(app.state.starting, return_exceptions=True)
            await measured.close()
            await media.close()

    app = _Application(
        title="qwen2-audio",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    handle_errors(app)
    app.include_router(chat.router(measured, settings, media))
    app.include_router(completions.router(measured, settings, media))
    app.include_router(models.router(measured, settings, media))
    app.include_router(ops.router(measured, settings, metrics))
    app.include_router(audio.router(measured, settings, media))
    app.include_router(realtime.router(measured, settings, media))
    protect(app, settings)
    app.state.backend, app.state.media = measured, media
    return app


class _Application(FastAPI):
    """FastAPI, whose description of itself says how a key is given."""

    def openapi(self) -> dict[str, Any]:
        """/openapi.json."""
        if not self.openapi_schema:
            schema = super().openapi()
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    operation["security"] = [] if path in ("/health", "/ready") else [{"key": []}, {}]
        return self.openapi_schema or {}
