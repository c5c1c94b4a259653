"""CoVoST 2: speech translation in seven directions, BLEU."""

from qwen2_audio.evaluation.task import S2TT_PROMPT, Family, Task

FAMILY = Family(
    name="covost2",
    title="CoVoST2",
    download=(
        "covost_v2.SOURCE_TARGET.tsv.tar.gz from https://github.com/facebookresearch/covost and the clips of Common Voice "
        "(corpus 4; or a later one, 13 in the published rows, with its validated.tsv, without which nothing is left out) "
        "from https://commonvoice.mozilla.org/datasets"
    ),
    layout=(
        "LOCALE/covost_v2.SOURCE_TARGET.tsv or LOCALE/covost_v2.SOURCE_TARGET.test.tsv\n"
        "LOCALE/validated.tsv and LOCALE/clips/NAME.mp3 (LOCALE is that of the speech: en, de, es, fr, it, zh-CN)"
    ),
)
DIRECTIONS = ("en-de", "de-en", "en-zh", "zh-en", "es-en", "fr-en", "it-en")
TARGETS = {"en": "English", "de": "German", "zh": "Mandarin"}
"""The target's name in the prompt."""


def source_of(direction: str) -> str:
    """What rows of a direction are called; the last word but one is the target language, by which BLEU is tokenized."""
    return f"covost_{direction.replace('-', '_')}_test"


def prompt_of(direction: str) -> str:
    """The exact instruction; the tag is of the language spoken."""
    spoken, target = direction.split("-")
    return S2TT_PROMPT.format(target=TARGETS[target], language=spoken)


TASKS = tuple(
    Task(
        name=source_of(direction),
        metric="bleu",
        family=FAMILY,
        prompt=prompt_of(direction),
        language=direction.split("-")[0],
        keep={"source": (source_of(direction),)},
        published=("S2TT", "covost2", direction),
    )
    for direction in DIRECTIONS
)
