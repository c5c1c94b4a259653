"""Fleurs: read Mandarin, character error rate."""

from qwen2_audio.evaluation.task import ASR_PROMPT, Family, Task

FAMILY = Family(
    name="fleurs_zh",
    title="Fleurs zh",
    download="data/cmn_hans_cn (test.tsv and audio/test.tar.gz) from https://huggingface.co/datasets/google/fleurs",
    layout="cmn_hans_cn/test.tsv\ncmn_hans_cn/audio/test/NAME.wav",
)
LOCALE = "cmn_hans_cn"

TASKS = (
    Task(
        name="fleurs_zh",
        metric="wer",
        family=FAMILY,
        source="fleurs_zh",
        prompt=ASR_PROMPT.format(language="zh"),
        language="zh",
        published=("ASR", "fleurs", "zh"),
    ),
)
