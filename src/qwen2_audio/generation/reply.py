"""`Reply`: a whole answer, and the way from requests to replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `str(reply)` is its text.

    Attributes:
        text: the answer.
        finish_reason: "stop" (it was complete), "length" (cut at max_new_tokens, at the end of the context, or where a
            transcription began to repeat itself) or "cancelled".
        tokens: ids of the answer, the one that ended it included.
        prompt_tokens: number of tokens in front of the answer.
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[int, ...]
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        """How many tokens the answer has."""
        return len(self.tokens)

    def __str__(self) -> str:
        return self.text


def answer_all(engine: Engine, requests: Sequence[Request]) -> list[Reply]:
    """Answer all requests together, in their order."""
    texts: list[list[str]] = [[] for _ in requests]
    tokens: list[list[int]] = [[] for _ in requests]
    ends: list[FinishReason] = ["cancelled"] * len(requests)
    for step in engine.run(requests) if requests else ():
        texts[step.index].append(step.text)
        tokens[step.index].append(step.token)
        ends[step.index] = step.finish_reason or ends[step.index]
    return [
        Reply("".join(text), end, tuple(ids), len(request.ids))
        for text, end, ids, request in zip(texts, ends, tokens, requests, strict=True)
    ]
