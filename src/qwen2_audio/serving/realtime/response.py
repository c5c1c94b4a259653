"""One answer on a connection: its events, from `response.created` to `response.done`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.serving.backend import Delta
from qwen2_audio.serving.errors import problem_of
from qwen2_audio.serving.realtime.items import Item

Reason = Literal["turn_detected", "client_cancelled"]


@dataclass(slots=True)
class Response:
    """An answer that is being given.

    Attributes:
        item: what it says so far, as an item of the conversation.
        keep: id of the last item that it answers, which is not forgotten for it.
        remembered: whether it becomes part of the conversation.
        forgets: whether the oldest turns of the conversation make room for it, where they are what it answers.
        instructions: its own, None: those of the session.
    """

    id: str
    item: Item
    keep: str
    remembered: bool
    forgets: bool
    instructions: str | None
    options: GenerationOptions
    max_tokens: int | None
    metadata: dict[str, str] | None
    audio_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0

    def opening(self, before: str | None) -> Iterator[dict[str, Any]]:
        """The events of its beginning."""
        yield {"type": "response.created", "response": self.as_json("in_progress")}
        item = self.item.as_json()
        yield {"type": "response.output_item.added", "response_id": self.id, "output_index": 0, "item": item}
        if self.remembered:
            yield {"type": "conversation.item.added", "previous_item_id": before, "item": item}
        yield self._of_content("response.content_part.added", part={"type": "text", "text": ""})

    def push(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """What is new in it."""
        self.tokens += delta.tokens
        self.prompt_tokens, self.cached_tokens = delta.prompt_tokens, delta.cached_tokens
        if delta.text:
            self.item = replace(self.item, content=(self.item.text + delta.text,))
            yield self._of_content("response.output_text.delta", delta=delta.text)

    def closing(
        self, before: str | None, *, cut: bool = False, cancelled: Reason | None = None, error: Exception | None = None
    ) -> Iterator[dict[str, Any]]:
        """The events of its end.

        Args:
            cut: it reached the limit of its length.
            cancelled: who ended it early.
            error: what went wrong.
        """
        whole = not (cut or cancelled or error)
        self.item = replace(self.item, status="completed" if whole else "incomplete")
        text, item = self.item.text, self.item.as_json()
        yield self._of_content("response.output_text.done", text=text)
        yield self._of_content("response.content_part.done", part={"type": "text", "text": text})
        yield {"type": "response.output_item.done", "response_id": self.id, "output_index": 0, "item": item}
        if self.remembered:
            yield {"type": "conversation.item.done", "previous_item_id": before, "item": item}
        status: dict[str, Any] = {"type": "completed"}
        if error is not None:
            problem = problem_of(error)
            told = {"type": problem.type, "code": problem.code, "message": problem.message}
            status = {"type": "failed", "error": told}
        elif cancelled:
            status = {"type": "cancelled", "reason": cancelled}
        elif cut:
            status = {"type": "incomplete", "reason": "max_output_tokens"}
        yield {"type": "response.done", "response": self.as_json(status["type"], status)}

    def as_json(self, status: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        """In OpenAI's form; with usage once it is over."""
        over = status != "in_progress"
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [self.item.as_json()] if over else [],
            "output_modalities": ["text"],
            "max_output_tokens": "inf" if self.max_tokens is None else self.max_tokens,
            "metadata": self.metadata,
            "usage": self._usage() if over else None,
        }

    def _usage(self) -> dict[str, Any]:
        audio = min(self.audio_tokens, self.prompt_tokens)
        return {
            "total_tokens": self.prompt_tokens + self.tokens,
            "input_tokens": self.prompt_tokens,
            "output_tokens": self.tokens,
            "input_token_details": {
                "text_tokens": self.prompt_tokens - audio,
                "audio_tokens": audio,
                "cached_tokens": self.cached_tokens,
            },
            "output_token_details": {"text_tokens": self.tokens, "audio_tokens": 0},
        }

    def _of_content(self, type: str, **more: Any) -> dict[str, Any]:
        place = {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}
        return {"type": type, **place, **more}
