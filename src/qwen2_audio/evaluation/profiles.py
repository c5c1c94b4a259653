"""The two ways of scoring: `official`, with every habit of the published numbers' scripts, and `clean`, without their slips.

    what                         official                            clean
    English                      Whisper's English normaliser, then  the English one alone
                                 the basic one: "3.14" is two words
    Mandarin                     traditional and full-width          made simplified and half width first
                                 characters are errors
    labels (accuracy, prefix)    equal to the letter; only spaces    case, spaces around and a final mark do not count
                                 before the answer are forgiven
    choice without a letter      left out, counted as "fail_num"     wrong
    BLEU                         raw strings; Chinese only if the    spaces around do not count; "zh-CN" is Chinese, too
                                 source says exactly "zh"
    a clip without an answer     left out                            an empty answer

In both, Latin words in Mandarin and Cantonese count letter by letter, and Cantonese numbers are not read out. Both count clips
without an answer and empty references in the result: nothing disappears.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen2_audio.errors import UsageError, advice

PROFILES = ("official", "clean")


def check_known(what: str, given: str, known: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UsageError: with the nearest known name.
    """
    if given not in known:
        raise UsageError(f"unknown {what} {given!r}; {advice(given, known, 'use one of')}")
