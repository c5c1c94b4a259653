"""Whisper's normalisers, English and basic, from the package `whisper-normalizer`.

Up to its release 0.1.1 the package equals openai-whisper, which the published numbers were made with. Later ones also write
`cause` as "because" and `kinda` as "kind of", which changes error rates: they are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version

from qwen2_audio.errors import UsageError

PIN = "whisper-normalizer==0.1.1"
_PROBE = "cause kinda sorta dunno"


def english(text: str) -> str:
    """English in one spelling: contractions written out, numbers in digits, American spelling, no brackets, no fillers.

    Raises:
        UsageError: the package is missing, or of a release that normalises otherwise.
    """
    return _normalizers()[0](text)


def basic(text: str) -> str:
    """Any language in lower case, without what stands in brackets; marks and symbols become spaces.

    Raises:
        UsageError: the package is missing, or of a release that normalises otherwise.
    """
    return _normalizers()[1](text)


@lru_cache(maxsize=1)
def _normalizers() -> tuple[Callable[[str], str], Callable[[str], str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a docstring of theirs has an invalid escape, which Python says once
            from whisper_normalizer.basic import BasicTextNormalizer
            from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise UsageError('error rates need whisper-normalizer: pip install "qwen2-audio[eval]"') from None
    normalize: Callable[[str], str] = EnglishTextNormalizer()
    if (changed := normalize(_PROBE)) != _PROBE:
        raise UsageError(
            f"whisper-normalizer {version('whisper-normalizer')} turns {_PROBE!r} into {changed!r}, unlike the scorer of "
            f'the published numbers; run: pip install "{PIN}"'
        )
    return normalize, BasicTextNormalizer()
