"""One way of writing where there are several: simplified characters for traditional ones, half width for full width."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

from qwen2_audio.errors import UsageError

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def simplified(text: str) -> str:
    """Chinese in simplified characters and the words of the mainland, through zhconv ("zh-cn").

    Raises:
        UsageError: zhconv is missing.
    """
    return _convert()(text)


def half_width(text: str) -> str:
    """Full-width Latin letters, digits, marks and spaces as their ASCII twins: "ＡＢ１２％" becomes "AB12%"."""
    return text.translate(_HALF_WIDTH)


@lru_cache(maxsize=1)
def _convert() -> Callable[[str], str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it leaves its table open, and may import the deprecated pkg_resources
            import zhconv

            zhconv.convert("", "zh-cn")  # reads the table
    except ImportError:
        raise UsageError('Cantonese and traditional script need zhconv: pip install "qwen2-audio[eval]"') from None
    return lambda text: str(zhconv.convert(text, "zh-cn"))
