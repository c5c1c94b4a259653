"""MELD: the emotion of lines from a television series, accuracy over seven classes."""

from qwen2_audio.evaluation.task import SER_PROMPT, Family, Task

FAMILY = Family(
    name="meld",
    title="MELD",
    download="MELD.Raw.tar.gz (its test.tar.gz and test_sent_emo.csv) from https://github.com/declare-lab/MELD",
    layout=(
        "test_sent_emo.csv\n"
        "output_repeated_splits_test/diaDIALOGUE_uttUTTERANCE.mp4 (or .wav or .flac of the same name, extracted from it)"
    ),
)

TASKS = (
    Task(
        name="meld_test",
        metric="accuracy",
        family=FAMILY,
        source="meld_test",
        prompt=SER_PROMPT,
        language="en",
        published=("SER", "meld", "test"),
    ),
)
