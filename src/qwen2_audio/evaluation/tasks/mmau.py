"""MMAU (v05.15.25): choices about sound, music and speech that want knowledge; the benchmark's own string match.

Each row's prompt is the question with the choices below it, in our words: the benchmark prescribes none.
"""

from qwen2_audio.evaluation.task import Family, Task

FAMILY = Family(
    name="mmau",
    title="MMAU test-mini",
    download="mmau-test-mini.json and test-mini-audios.tar.gz (v05.15.25) from https://github.com/Sakshi113/MMAU",
    layout="mmau-test-mini.json\ntest-mini-audios/ID.wav",
)

TASKS = (
    Task(
        name="mmau_test_mini",
        metric="string_match",
        family=FAMILY,
        source="mmau_test_mini",
        chat=True,
        breakdown=("task", "difficulty", "sub-category"),
    ),
)
