"""From `openai:URL` to a `RemoteAssistant`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from qwen2_audio.remote.assistant import RemoteAssistant


def open_remote(url: str, *, key_variable: str | None = None) -> RemoteAssistant:
    """Ask the server at `openai:URL` for its models and take one; see `RemoteAssistant`."""
    try:
        import httpx  # noqa: F401
    except ImportError:
        raise UsageError('asking a server needs the package httpx: pip install "qwen2-audio[serve]"') from None
    from qwen2_audio.remote.assistant import RemoteAssistant

    return RemoteAssistant(url, key_variable=key_variable)


def refuse_local_options(
    *, adapter: str | Path | None, device: str, dtype: str, quantize: str, revision: str | None, offline: bool
) -> None:
    """Raise `UsageError` for what only makes sense of a model in this process."""
    given = {"adapter": adapter, "revision": revision, "offline": offline or None}
    given |= {name: value for name, value in (("device", device), ("dtype", dtype)) if value != "auto"}
    given |= {"quantize": None if quantize == "none" else quantize}
    named = next((name for name, value in given.items() if value is not None), None)
    if named is not None:
        raise UsageError(
            f"{named} is the server's choice where the model is openai:URL; leave it out"
            + (" (an adapter that the server has is named behind a #)" if named == "adapter" else "")
        )
