"""What a server says of its models at `/models`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen2_audio.config import MAX_CLIP_SECONDS
from qwen2_audio.errors import UsageError
from qwen2_audio.remote.wire import Dialect, dialect_of

_CONTEXT = 8192
"""Tokens that Qwen2-Audio's context holds, where a server does not say."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """One that a server has.

    Attributes:
        context_length: tokens of prompt and answer together.
        transcription_window: seconds of the longest piece in which it transcribes well; our servers say it.
        root: of an adapter: the model it belongs to.
    """

    name: str
    dialect: Dialect
    context_length: int = _CONTEXT
    transcription_window: float = MAX_CLIP_SECONDS
    root: str | None = None


def read_models(listing: Any) -> tuple[RemoteModel, ...]:
    """The body of `/models`; () where it is none."""
    entries = listing.get("data") if isinstance(listing, Mapping) else None
    if not isinstance(entries, list):
        return ()
    return tuple(_read(entry) for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("id"), str))


def _read(entry: Mapping[str, Any]) -> RemoteModel:
    context, window = entry.get("max_model_len"), entry.get("transcription_window")
    parent = entry.get("parent")
    return RemoteModel(
        entry["id"],
        dialect_of(str(entry.get("owned_by", ""))),
        context if isinstance(context, int) and context > 0 else _CONTEXT,
        window if isinstance(window, int | float) and 1 <= window <= MAX_CLIP_SECONDS else MAX_CLIP_SECONDS,
        parent if isinstance(parent, str) else None,
    )


def choose_model(models: tuple[RemoteModel, ...], wanted: str | None, server: str) -> RemoteModel:
    """The model that is wanted, or else the first.

    Raises:
        UsageError: there is none such.
    """
    if wanted is not None:
        found = next((model for model in models if model.name == wanted), None)
        if found is None:
            names = ", ".join(model.name for model in models) or "none"
            raise UsageError(f"{server} has no model {wanted!r}; it has {names}")
        return found
    if not models:
        raise UsageError(f"{server} lists no models; name one behind a #, as in openai:http://host:8000/v1#NAME")
    return models[0]
