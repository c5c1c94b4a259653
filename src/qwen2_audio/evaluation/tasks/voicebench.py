"""VoiceBench: spoken requests, answered in a voice chat; the open parts are judged, the choices are matched.

Open answers are marked from 1 to 5 (the benchmark marks sd-qa by yes or no), in our words and by whatever judge is given; its
choices (MMSU, OpenBookQA) are read by AIR-Bench's rule. So these numbers stand beside each other, not beside its leaderboard's.
"""

from qwen2_audio.evaluation.task import Family, Task

FAMILY = Family(
    name="voicebench",
    title="VoiceBench",
    download="the folders alpacaeval, alpacaeval_full, commoneval, sd-qa, mmsu and openbookqa from https://huggingface.co/datasets/hlt-lab/voicebench",
    layout="SUBSET/SPLIT-NUMBER.parquet",
)
OPEN = ("alpacaeval", "alpacaeval_full", "commoneval", "sd-qa")
CHOICES = ("mmsu", "openbookqa")


def source_of(subset: str) -> str:
    """What rows of a subset are called."""
    return f"voicebench_{subset.replace('-', '_')}"


TASKS = tuple(
    Task(
        name=source_of(subset),
        metric="judge" if subset in OPEN else "choice",
        family=FAMILY,
        language="en",
        chat=True,
        keep={"source": (source_of(subset),)},
    )
    for subset in (*OPEN, *CHOICES)
)
