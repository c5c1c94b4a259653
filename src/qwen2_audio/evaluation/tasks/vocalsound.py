"""VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs, accuracy."""

from qwen2_audio.evaluation.task import VSC_PROMPT, Family, Task

FAMILY = Family(
    name="vocalsound",
    title="VocalSound",
    download="vs_release_16k.zip from https://github.com/YuanGongND/vocalsound",
    layout="audio_16k/SPEAKER_NUMBER_SOUND.wav\nmeta/te_meta.csv (or datafiles/te.json)",
)
LABELS = {
    "laughter": "Laughter",
    "sigh": "Sigh",
    "cough": "Cough",
    "throatclearing": "Throat clearing",
    "sneeze": "Sneeze",
    "sniff": "Sniff",
}
"""The sound in a file's name, and the label of the reference."""

TASKS = (
    Task(
        name="vocalsound_test",
        metric="accuracy",
        family=FAMILY,
        source="vocalsound_test",
        prompt=VSC_PROMPT,
        published=("VSC", "vocalsound", "test"),
    ),
)
