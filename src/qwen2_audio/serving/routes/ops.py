"""For those who run the server: is it alive, is it ready, how is it doing, and what can it do."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from qwen2_audio import __version__
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.docs_page import docs_page
from qwen2_audio.serving.metrics import Metrics
from qwen2_audio.serving.replies import StatusReply, VersionReply
from qwen2_audio.serving.routes.answers import failures
from qwen2_audio.serving.settings import Settings


def router(backend: Backend, settings: Settings, metrics: Metrics) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/health", summary="Whether the server is alive")
    async def health() -> StatusReply:
        return StatusReply(status="ok")

    @routes.get(
        "/ready",
        summary="Whether a request given now would be answered",
        response_model=StatusReply,
        responses={503: {"model": StatusReply, "description": "Not now: it is starting, or has lost its engine."}},
    )
    async def ready() -> Response:
        status = StatusReply(status="ok" if backend.ready else "starting")
        return JSONResponse(status.model_dump(), 200 if backend.ready else 503)

    @routes.get("/version", summary="Which version of the package answers", responses=failures())
    async def version() -> VersionReply:
        return VersionReply(version=__version__)

    if settings.metrics:

        @routes.get(
            "/metrics",
            summary="Counts and times, for Prometheus",
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **failures()},
        )
        async def prometheus() -> Response:
            return Response(metrics.text, media_type=CONTENT_TYPE_LATEST)

    if settings.docs:

        @routes.get("/docs", include_in_schema=False)
        async def docs(request: Request) -> HTMLResponse:
            return HTMLResponse(docs_page(request.app.openapi()))

    return routes
