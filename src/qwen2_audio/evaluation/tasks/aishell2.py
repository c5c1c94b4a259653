"""AISHELL-2: Mandarin commands and sentences heard by a microphone, an iPhone and an Android phone, character error rate."""

from qwen2_audio.evaluation.task import ASR_PROMPT, Family, Task

FAMILY = Family(
    name="aishell2",
    title="AISHELL-2",
    download="AISHELL-2 DEV & TEST sets (on application) from https://www.aishelltech.com/aishell_2",
    layout="DEVICE/test/wav.scp\nDEVICE/test/trans.txt\nDEVICE/test/wav/SPEAKER/NAME.wav (DEVICE is Mic, iOS or Android)",
)
DEVICES = ("Mic", "iOS", "Android")


def source_of(device: str) -> str:
    """What rows of a device are called: "iOS" is aishell2_ios."""
    return f"aishell2_{device.lower()}"


TASKS = tuple(
    Task(
        name=source_of(device),
        metric="wer",
        family=FAMILY,
        prompt=ASR_PROMPT.format(language="zh"),
        language="zh",
        keep={"source": (source_of(device),)},
        published=("ASR", "aishell2", device),
    )
    for device in DEVICES
)
