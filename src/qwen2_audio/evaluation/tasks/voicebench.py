"""VoiceBench: spoken requests, answered in a voice chat; the open parts are judged, the choices are matched.

Open answers are marked from 1 to 5 as in the benchmark, but in our words and by whatever judge is given: near its marks, not
the same. Its choices (MMSU, OpenBookQA) are read by our own rule.
"""

from qwen2_audio.evaluation.task import Family, Task

FAMILY = Family(
    name="voicebench",
    title="VoiceBench",
    download="the folders alpacaeval, commoneval, sd-qa, mmsu and openbookqa from https://huggingface.co/datasets/hlt-lab/voicebench",
    layout="SUBSET/SPLIT-NUMBER.parquet",
)
OPEN = ("alpacaeval", "commoneval", "sd-qa")
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
