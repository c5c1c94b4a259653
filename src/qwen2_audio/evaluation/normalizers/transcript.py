"""From a transcript to the units that an error rate counts: the official scorer's steps, and the clean profile's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.normalizers.chinese import chinese
from qwen2_audio.evaluation.normalizers.script import half_width, simplified
from qwen2_audio.evaluation.normalizers.whisper import basic, english

BY_CHARACTER = ("zh", "yue")
"""Languages whose error rates count characters."""
_SAME_LANGUAGE = {"cmn": "zh", "zho": "zh", "chi": "zh", "eng": "en", "jpn": "ja"}

_STEPS: dict[str, dict[str, tuple[Callable[[str], str], ...]]] = {
    "official": {"en": (english, basic), "zh": (chinese,), "yue": (simplified, basic)},
    "clean": {"en": (english,), "zh": (half_width, simplified, chinese), "yue": (simplified, basic)},
}
_OTHER_STEPS = (basic,)


def primary_language(code: str) -> str:
    """The language of an ISO code: "zh" for "zh-CN", "zh_cn", "cmn_hans_cn"; any other code's first part.

    Raises:
        UsageError: it is no such code.
    """
    first = re.split("[-_]", code.strip().lower())[0]
    if not re.fullmatch("[a-z]{2,3}", first):
        raise UsageError(f"a language is an ISO code such as en, zh, yue or fr; got {code!r}")
    return _SAME_LANGUAGE.get(first, first)


def transcript_units(text: str, language: str, profile: str, *, characters: bool = False) -> list[str]:
    """What is compared of a transcript: words, or the characters of Mandarin and Cantonese.

    Args:
        language: from `primary_language`.
        profile: "official" or "clean"; see qwen2_audio.evaluation.profiles.
        characters: also of other languages; spaces do not count.
    """
    text = _tidy(text, language)
    for normalize in _STEPS[profile].get(language, _OTHER_STEPS):
        text = normalize(text)
    words = [word for piece in text.split(" ") if not _is_punctuation(piece) for word in piece.lower().split()]
    return list("".join(words)) if characters or language in BY_CHARACTER else words


def _tidy(text: str, language: str) -> str:
    """Without tags such as <|en|>, doubled spaces and spaces before marks; Mandarin without any spaces."""
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([!,.?;:])", r"\1", text).lstrip(" ")
    return re.sub(r"\s+", "", text) if language == "zh" else text


def _is_punctuation(piece: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in piece)
