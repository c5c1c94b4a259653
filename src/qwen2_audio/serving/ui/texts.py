"""Everything the page says, in English and Chinese."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


class Texts:
    """The texts of one language."""

    def __init__(self, language: Language, entries: dict[str, str]) -> None:
        self.language = language
        self.entries = entries

    def say(self, key: str, **values: str) -> str:
        """The text of `key` with `{name}` replaced by the value of that name."""
        text = self.entries[key]
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return text

    def group(self, prefix: str) -> dict[str, str]:
        """All texts whose key begins with `prefix` and a dot."""
        return {key: text for key, text in self.entries.items() if key.startswith(prefix + ".")}


@lru_cache(maxsize=len(LANGUAGES))
def texts(language: Language) -> Texts:
    """The texts of a language."""
    file = files("qwen2_audio.serving.ui") / "texts" / f"{language}.json"
    return Texts(language, json.loads(file.read_text(encoding="utf-8")))


def language_of(tag: str | None, default: Language = "en") -> Language:
    """The language to speak to a browser that calls its own `tag`, such as zh-CN."""
    known = (tag or "").lower().split("-")[0]
    return next((language for language in LANGUAGES if language == known), default)
