"""MMAR: choices that want several steps of reasoning about speech, sound, music and mixtures; MMAU's string match."""

from qwen2_audio.evaluation.task import Family, Task

FAMILY = Family(
    name="mmar",
    title="MMAR",
    download="MMAR-meta.json and mmar-audio.tar.gz from https://huggingface.co/datasets/BoJack/MMAR",
    layout="MMAR-meta.json\naudio/NAME.wav",
)

TASKS = (
    Task(
        name="mmar", metric="string_match", family=FAMILY, source="mmar", chat=True, breakdown=("modality", "category")
    ),
)
