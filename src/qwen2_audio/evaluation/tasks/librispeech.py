"""LibriSpeech: read English, word error rate of four sets."""

from qwen2_audio.evaluation.task import ASR_PROMPT, Family, Task

FAMILY = Family(
    name="librispeech",
    title="LibriSpeech",
    download="dev-clean.tar.gz, dev-other.tar.gz, test-clean.tar.gz and test-other.tar.gz from https://www.openslr.org/12",
    layout=(
        "LibriSpeech/test-clean/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt\n"
        "LibriSpeech/test-clean/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac"
    ),
)
SPLITS = ("dev-clean", "dev-other", "test-clean", "test-other")
PROMPT = ASR_PROMPT.format(language="en")


def source_of(split: str) -> str:
    """What rows of a split are called: "test-clean" is librispeech_test_clean."""
    return f"librispeech_{split.replace('-', '_')}"


TASKS = tuple(
    Task(
        name=source_of(split),
        metric="wer",
        family=FAMILY,
        prompt=PROMPT,
        language="en",
        keep={"source": (source_of(split),)},
        published=("ASR", "librispeech", split),
    )
    for split in SPLITS
)
