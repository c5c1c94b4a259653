"""The scorecard of `mini`: small sets of real recordings, of which only what was held out from its training is asked."""

from qwen2_audio.evaluation.task import ASR_PROMPT, SER_PROMPT, Family, Task


def _family(name: str, title: str, download: str) -> Family:
    return Family(name, title, download, f"DATA/{name}/manifest.jsonl\nDATA/{name}/audio/NAME", prepared=False)


_LIBRISPEECH = _family(
    "librispeech_excerpt", "LibriSpeech excerpt", "clips of test-other from https://www.openslr.org/12"
)
_ESC10 = _family("esc10", "ESC-10", "the ten classes with esc10 True from https://github.com/karolpiczak/ESC-50")
_EMODB = _family("emodb", "EmoDB", "download.zip from http://emodb.bilderbar.info")
_FSDD = _family("fsdd", "FSDD", "the recordings from https://github.com/Jakobovski/free-spoken-digit-dataset")
_QUESTIONS = _family("spoken_questions", "Spoken questions", "what recipes/mini/spoken_questions.py makes")

TASKS = (
    Task(
        name="librispeech_excerpt",
        metric="wer",
        family=_LIBRISPEECH,
        source="librispeech_excerpt",
        prompt=ASR_PROMPT.format(language="en"),
        language="en",
        keep={"split": ("test",)},
    ),
    Task(
        name="esc10", metric="accuracy", family=_ESC10, source="esc10", prompt="What is the sound?", keep={"fold": (4,)}
    ),
    Task(
        name="emodb",
        metric="accuracy",
        family=_EMODB,
        source="emodb",
        prompt=SER_PROMPT,
        language="de",
        keep={"speaker": ("09", "12")},
    ),
    Task(
        name="fsdd",
        metric="wer",
        family=_FSDD,
        source="fsdd",
        prompt=ASR_PROMPT.format(language="en"),
        language="en",
        keep={"split": ("test",)},
    ),
    Task(
        name="spoken_questions",
        metric="word_f1",
        family=_QUESTIONS,
        source="spoken_questions",
        language="en",
        chat=True,
    ),
)
