"""`/v1/models` and `/tokenize`: what is served, and what a prompt becomes."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request

from qwen2_audio.serving.backend import Backend, ModelCard
from qwen2_audio.serving.convert import card_of, prompt_to_tokenize
from qwen2_audio.serving.disconnect import while_present
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.replies import ModelList, ModelReply, TokenizeReply
from qwen2_audio.serving.routes.answers import JsonRoute, failures
from qwen2_audio.serving.schema import TokenizeRequest
from qwen2_audio.serving.settings import Settings


def router(backend: Backend, settings: Settings, media: Media) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["models"], route_class=JsonRoute)
    created = int(time.time())

    def described(card: ModelCard) -> ModelReply:
        return ModelReply(
            id=card.name,
            created=created,
            root=card.root or card.name,
            parent=card.root,
            max_model_len=card.context_length,
            transcription_window=card.transcription_window,
        )

    @routes.get("/v1/models", summary="All models and adapters that can be asked for", responses=failures(503))
    async def models() -> ModelList:
        card_of(backend, None)  # says so while the server is starting
        return ModelList(data=[described(card) for card in backend.models])

    @routes.get("/v1/models/{model:path}", summary="One of them", responses=failures(404, 503))
    async def model(model: str) -> ModelReply:
        return described(card_of(backend, model))

    @routes.post("/tokenize", summary="The tokens of a prompt", responses=failures(400, 404, 413, 429, 503))
    async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeReply:
        card = card_of(backend, body.model)
        prompt = await while_present(request, prompt_to_tokenize(body, settings, media))
        tokens, length = await while_present(request, backend.tokenize(prompt, card.name))
        return TokenizeReply(count=len(tokens), max_model_len=length, tokens=tokens)

    return routes
