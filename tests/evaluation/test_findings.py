"""What a report finds behind the scores: slices that say something, what goes wrong most, what differs."""

from __future__ import annotations

from typing import Any

import pytest

from qwen2_audio.evaluation.document import compared
from qwen2_audio.evaluation.findings import Failure, confusions, failures, slices, split_breakdowns, worst
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Part, Score


def test_slices_only_where_they_say_something() -> None:
    parts = tuple(Part(str(i), i % 2, 1) for i in range(40))
    score = Score("s", "accuracy", "clean", 0.5, 40, parts=parts)

    def cut(**of: Any) -> list[tuple[str, str, int, float]]:
        answers = [
            Answer(Sample(str(i), (), "", "", "s", **{key: value(i) for key, value in of.items()}), "")
            for i in range(40)
        ]
        return [(one.by, one.name, one.samples, one.value) for one in slices(score, answers)]

    assert cut() == []
    assert cut(speaker=lambda i: str(i)) == []  # one answer each: chance
    assert cut(language=lambda i: "en") == []  # the whole again
    assert cut(speaker=lambda i: "abc"[i % 2] if i < 38 else "c") == [
        ("speaker", "a", 19, 0.0),
        ("speaker", "b", 19, 1.0),
    ]
    assert cut(language=lambda i: "en" if i < 11 else "de") == [
        ("language", "de", 29, pytest.approx(15 / 29)), ("language", "en", 11, pytest.approx(5 / 11))
    ]  # fmt: skip
    assert cut(duration=lambda i: 30.0 if i < 3 else 30.5 if i < 5 else 0.0) == [
        ("length", "20–30 s", 3, pytest.approx(1 / 3)), ("length", "over 30 s", 2, 0.5)
    ]  # fmt: skip


def test_a_slice_counts_what_its_score_counts() -> None:
    """An answer without a letter is not scored; an empty reference is, by the insertions."""
    samples = [Sample(str(i), (), "", "", "s", speaker="ab"[i % 2]) for i in range(40)]
    answers = [Answer(sample, "") for sample in samples]

    def counted(metric: str, unscored: int) -> list[tuple[str, int]]:
        parts = tuple(Part(str(i), 0, float(i >= unscored)) for i in range(40))
        return [
            (one.name, one.samples) for one in slices(Score("s", metric, "official", 0.0, 40, parts=parts), answers)
        ]

    assert counted("choice", 10) == [("a", 15), ("b", 15)]
    assert counted("wer", 10) == [("a", 20), ("b", 20)]
    assert counted("choice", 21) == []  # 9 of the speaker a, 10 of b: one slice is none


def test_a_source_may_have_a_slash_in_its_name() -> None:
    names = ["cv", "cv/en", "cv/en/task=a/b", "cv/task=c", "other/task=d"]
    rest, parts = split_breakdowns([Score(name, "wer", "clean", 0.2, 4) for name in names])
    assert [score.source for score in rest] == ["cv", "cv/en", "other/task=d"]
    assert [(part.score.source, part.by, part.name) for part in parts] == [
        ("cv/en", "task", "a/b"),
        ("cv", "task", "c"),
    ]


def test_what_goes_wrong_most() -> None:
    errors = [Part("a", 2, 4), Part("b", 0, 9), Part("c", 3, 30), Part("d", 3, 3)]
    assert [part.id for part in worst(Score("s", "wer", "clean", 0.2, 4, parts=tuple(errors)), 3)] == ["d", "c", "a"]
    marks = [Part("a", 8, 1), Part("unmarked", 0, 0), Part("b", 2, 2), Part("c", 10, 1)]
    assert [part.id for part in worst(Score("s", "judge", "clean", 5, 4, parts=tuple(marks)), 9)] == ["b", "a"]
    of_five = Score("s", "judge", "clean", 5, 2, parts=(Part("a", 5, 1), Part("b", 4, 1)), details={"scale": "1 to 5"})
    assert [part.id for part in worst(of_five, 9)] == ["b"]
    labels = [Part("1", 0, 1, "joy", "anger"), Part("2", 1, 1, "joy", "joy"), Part("3", 0, 0, "joy", "")]
    labels += [Part("4", 0, 1, "fear", "joy"), Part("5", 0, 1, "fear", "joy")]
    found = confusions(Score("s", "choice", "official", 0.25, 4, parts=tuple(labels)), 9)
    assert [(one.reference, one.response, one.times) for one in found] == [("fear", "joy", 2), ("joy", "anger", 1)]
    assert confusions(Score("s", "wer", "clean", 0.2, 4, parts=tuple(errors)), 9) == []
    failed = Answer(Sample("u4", (), "", "", "librispeech_test_clean"), "", "the clip is | truncated")
    answered = Answer(Sample("u1", (), "", "", "librispeech_test_clean"), "well")
    told = {"failures": [{"id": "x", "position": "model_first", "reply": "8", "error": "no mark can be read"}]}
    assert failures([Score("chat", "judge", "official", 5, 1, 1, details=told)], [failed, answered]) == [
        Failure("librispeech_test_clean", "u4", "the clip is | truncated"),
        Failure("chat", "x", "model_first: no mark can be read, the judge replied: 8"),
    ]


def test_what_differs_is_marked_in_words_or_characters() -> None:
    def shown(reference: str, response: str, units: int) -> tuple[str, ...]:
        return tuple(
            "".join(f"[{span.text}]" if span.differs else span.text for span in side)
            for side in compared(reference, response, units)
        )

    assert shown("the cat sat", "a cat sat down", 3) == ("[the] cat sat", "[a] cat sat [down]")
    assert shown("今天天气好", "今天天汽好吗", 5) == ("今天天[气]好", "今天天[汽]好[吗]")
    assert shown("", "oh no", 0) == ("", "[oh no]")
    assert shown("well", "", 1) == ("[well]", "")
    reference = " ".join(["word"] * 100)
    left, right = shown(reference, reference + " more", 100)
    assert left == reference[:400] + " … (99 more characters)"
    assert right == reference[:400] + " … (104 more characters)"
