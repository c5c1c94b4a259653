"""AIR-Bench: open questions about speech, sound, music and mixtures, marked by a judge; and its choices from four answers."""

from qwen2_audio.evaluation.task import Family, Task

_HOST = "https://huggingface.co/datasets/qyang1021/AIR-Bench-Dataset"
CHAT = Family(
    name="air_bench_chat",
    title="AIR-Bench chat",
    download=f"the folder Chat from {_HOST}",
    layout="Chat/Chat_meta.json\nChat/TASK_DATASET/NAME.wav",
)
FOUNDATION = Family(
    name="air_bench_foundation",
    title="AIR-Bench foundation",
    download=f"the folder Foundation from {_HOST}",
    layout="Foundation/Foundation_meta.json\nFoundation/TASK_DATASET/NAME.wav (.flac in Audio_Grounding)",
)
CHAT_GROUPS = {
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "speech_and_sound_QA": "mixed",
    "speech_and_music_QA": "mixed",
}
"""The group under which each of the benchmark's tasks is published."""
FOUNDATION_INSTRUCTION = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
    "you may only choose A or B or C or D."
)


def source_of(group: str) -> str:
    """What chat rows of a group are called."""
    return f"air_bench_chat_{group}"


TASKS = (
    *(
        Task(
            name=source_of(group),
            metric="judge",
            family=CHAT,
            chat=True,
            keep={"source": (source_of(group),)},
            published=("AIR-Bench chat", "air_bench_chat", group),
        )
        for group in ("speech", "sound", "music", "mixed")
    ),
    Task(name="air_bench_foundation", metric="choice", family=FOUNDATION, chat=True),
)
