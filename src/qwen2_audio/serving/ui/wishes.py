"""What the side panel says about the next answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.serving.backend import ModelCard, OverloadedError, UnknownModelError

LONGEST_ANSWER = 512
"""Tokens, where neither the checkpoint nor the visitor says."""


def chosen(models: Sequence[ModelCard], name: str | None) -> ModelCard:
    """The model of a name, the first where none is chosen.

    Raises:
        OverloadedError: it is still being loaded.
        UnknownModelError: there is none of that name.
    """
    if not models:
        raise OverloadedError("the model is still being loaded; ask again in a moment")
    found = next((card for card in models if card.name == name), None if name else models[0])
    if found is None:
        raise UnknownModelError(f"there is no model {name!r} here; choose another in the settings")
    return found


@dataclass(frozen=True, slots=True)
class Wishes:
    """The side panel's values, in the order in which events hand them over."""

    model: str
    system: str
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    length: int
    seed: str
    speak: bool
    voice: str

    def options(self, defaults: GenerationOptions) -> GenerationOptions:
        """As options for the answer.

        Raises:
            UsageError: a value that makes no sense.
        """
        seed = (self.seed or "").strip()
        if seed and not seed.isdecimal():
            raise UsageError(f"the seed must be a whole number, got {seed!r}; correct it in the settings, or empty it")
        return defaults.override(
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            top_k=int(self.top_k),
            repetition_penalty=float(self.repetition_penalty),
            max_new_tokens=int(self.length),
            seed=int(seed) if seed else None,
        )
