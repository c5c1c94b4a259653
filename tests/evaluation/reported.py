"""A small score, the run and the answers it is of, and the tables a report makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Part, Score

# 1 substitution and 1 insertion; nothing wrong; 2 deletions
PARTS = (
    Part("u1", 2, 3, "the cat sat", "a cat sat down", {"substitutions": 1, "deletions": 0, "insertions": 1}),
    Part("u2", 0, 1, "hello", "hello", {"substitutions": 0, "deletions": 0, "insertions": 0}),
    Part("u3", 2, 3, "good night all", "good", {"substitutions": 0, "deletions": 2, "insertions": 0}),
)
SMALL = Score("librispeech_test_clean", "wer", "clean", 4 / 7, 3, 1, (0.0, 2 / 3), PARTS)
RUN = {
    "model": "models/mini",
    "batch_size": 4,
    "generation": {"max_new_tokens": 256, "stop": []},
    "torch": "2.11",
    "limit": 4,
}


def answer(part: Part, duration: float, speaker: str = "", error: str = "") -> Answer:
    return Answer(
        Sample(part.id, (), "", part.reference, SMALL.source, False, "en", speaker, duration), part.response, error
    )


ANSWERS = [answer(part, seconds) for part, seconds in zip(PARTS, (5.0, 5.1, 30.0), strict=True)]


def markdown_rows(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            yield [cell.strip(" *") for cell in line.strip("|").split("|")]
