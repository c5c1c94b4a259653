"""What a session wants done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from qwen2_audio.serving.backend import Job


@dataclass(frozen=True, slots=True)
class Send:
    """An event for the client."""

    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Generate:
    """An answer that is wanted; its deltas, or the error that ends it, come back under the key."""

    key: str
    job: Job


@dataclass(frozen=True, slots=True)
class Stop:
    """An answer that is wanted no more."""

    key: str


Output: TypeAlias = Send | Generate | Stop
