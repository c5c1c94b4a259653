"""Which texts stand on which of Gradio's parts, so that one event can say all of them in another language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from qwen2_audio.serving.ui.texts import Texts


class Labels:
    """Gradio parts, and what each says in a language."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self._entries: list[tuple[Any, Callable[[Texts], dict[str, Any]]]] = []

    def say(self, key: str) -> str:
        """A text of the language that the page is made in."""
        return self.texts.say(key)

    def keep(self, part: Any, **keys: str) -> Any:
        """Remember that `part`'s properties carry the texts of `keys`; gives the part back."""
        return self.keep_by(part, lambda texts: {name: texts.say(key) for name, key in keys.items()})

    def keep_by(self, part: Any, properties: Callable[[Texts], dict[str, Any]]) -> Any:
        """Remember that `part`'s properties in a language are what the function says; gives the part back."""
        self._entries.append((part, properties))
        return part

    @property
    def parts(self) -> list[Any]:
        """All parts, in the order of `updates`."""
        return [part for part, _ in self._entries]

    def updates(self, texts: Texts) -> list[Any]:
        """What changes the parts to another language."""
        return [gr.update(**properties(texts)) for _, properties in self._entries]
