"""Common Voice 15: read speech in English, Mandarin, Cantonese and French, word (character) error rate."""

from qwen2_audio.evaluation.task import ASR_PROMPT, Family, Task

FAMILY = Family(
    name="common_voice_15",
    title="Common Voice 15",
    download=(
        "Common Voice Corpus 15.0 (2023-09-08) in English, Chinese (China), Cantonese and French from "
        "https://commonvoice.mozilla.org/datasets"
    ),
    layout="cv-corpus-15.0-2023-09-08/LOCALE/test.tsv\ncv-corpus-15.0-2023-09-08/LOCALE/clips/NAME.mp3",
)
LOCALES = {"en": "en", "zh": "zh-CN", "yue": "yue", "fr": "fr"}
"""The folder of each language."""


def source_of(language: str) -> str:
    """What rows of a language are called."""
    return f"common_voice_15_{language}"


TASKS = tuple(
    Task(
        name=source_of(language),
        metric="wer",
        family=FAMILY,
        prompt=ASR_PROMPT.format(language=language),
        language=language,
        keep={"source": (source_of(language),)},
        published=("ASR", "common_voice_15", language),
    )
    for language in LOCALES
)
