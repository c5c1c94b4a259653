"""`Request`: one answer that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.mel import Clip


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted.

    Attributes:
        ids: the prompt, or only what is new in it when a cache given with it holds the rest.
        clips: the recordings whose placeholders stand in `ids`, in order.
        options: how to choose tokens and when to stop.
        context: the ids that the cache holds (the repetition penalty counts them).
    """

    ids: list[int]
    clips: list[Clip] = field(default_factory=list)
    options: GenerationOptions = field(default_factory=GenerationOptions)
    context: list[int] = field(default_factory=list)
