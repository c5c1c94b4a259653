"""Answers that are right or wrong: labels, prefixes, choices, letters and shared words, by hand in both profiles."""

from __future__ import annotations

import pytest

from qwen2_audio.evaluation.accuracy import chosen_letter, matches_choice, plain_label, word_f1
from qwen2_audio.evaluation.scoring import score
from tests.evaluation.asked import answers, one


@pytest.mark.parametrize(
    ("gt", "response", "official", "clean"),
    [
        ("Throat clearing", "Throat clearing", 1, 1),
        ("Throat clearing", "  Throat clearing", 1, 1),
        ("Throat clearing", "Throat clearing ", 0, 1),
        ("Throat clearing", "Throat clearing.", 0, 1),
        ("Throat clearing", "throat Clearing。", 0, 1),
        ("Joy.", "joy", 0, 1),
        ("joy", "joy and sadness", 0, 0),
        ("joy", "", 0, 0),
    ],
)
def test_accuracy(gt: str, response: str, official: int, clean: int) -> None:
    assert one(score(answers((gt, response)), "accuracy")).value == official
    assert one(score(answers((gt, response)), "accuracy", profile="clean")).value == clean


def test_accuracy_of_several() -> None:
    result = one(score(answers(("a", "a"), ("b", "a"), ("c", "c"), ("d", "d")), "accuracy"))
    assert (result.value, result.samples, result.details) == (0.75, 4, {"right": 3})
    assert [part.numerator for part in result.parts] == [1, 0, 1, 1]


def test_prefix() -> None:
    given = answers(("joy", " joy, I think"), ("joy", "Joy"), ("joy", "The joy"))
    assert one(score(given, "prefix")).value == 1 / 3
    assert one(score(given, "prefix", profile="clean")).value == 2 / 3


def test_plain_label() -> None:
    assert plain_label("  Cough! ") == plain_label("cough") == "cough"
    assert plain_label("St. Louis") == "st. louis"


CHOICES = ["a dog barking", "a cat meowing", "dog and cat"]


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("a dog barking", "A dog barking.", True),
        ("a dog barking", "It is a dog barking loudly", True),
        ("a dog barking", "(A) a dog barking", True),
        ("a dog barking", "barking: dog, a", True),
        ("a dog barking", "a dog", False),  # a word is missing
        ("a dog barking", "a dog barking and meowing", False),  # words of wrong choices only
        ("dog and cat", "dog and cat", True),  # "cat" is in a wrong choice, too, but is the right one's own
        ("dog and cat", "a dog and a cat", False),
        ("a dog barking", "", False),
        ("a dog barking", "...", False),
    ],
)
def test_string_match(answer: str, response: str, right: bool) -> None:
    assert matches_choice(answer, response, CHOICES) is right
    assert one(score(answers((answer, response), more={"choices": CHOICES}), "string_match")).value == right


FIFTY = " ".join(f"w{number}" for number in range(50))


@pytest.mark.parametrize(
    ("gt", "response", "f1"),
    [
        ("Rome.", "rome", 1),
        ("Paris is the capital", "The capital: is it Paris?", 8 / 9),  # four of four, and of five
        ("a a b", "a b b", 2 / 3),  # each word as often as both have it
        ("a b c", "c d e", 1 / 3),
        ("Rome", "Paris", 0),
        ("Rome", "", 0),
        ("", "", 0),
        (FIFTY, FIFTY + " and so on", 1),  # only thirty words of each count
        (FIFTY, " ".join(FIFTY.split()[30:]), 0),
        (FIFTY, " ".join(FIFTY.split()[20:]), 1 / 3),
        ("yes", "yes " + FIFTY, 2 / 31),
    ],
)
def test_shared_words(gt: str, response: str, f1: float) -> None:
    assert word_f1(gt, response) == word_f1(response, gt) == pytest.approx(f1)
    for profile in ("official", "clean"):
        found = one(score(answers((gt, response)), "word_f1", profile=profile))
        assert (found.value, found.parts[0].response) == (f1 >= 0.5, response)


def test_half_of_the_words_is_enough() -> None:
    given = answers(("a b", "b c"), ("a b c", "c d e"), ("a b", "a b"))
    found = one(score(given, "word_f1"))
    assert ([part.numerator for part in found.parts], found.value) == ([1, 0, 1], 2 / 3)
    assert found.details == {"right": 2} and not found.lower_is_better


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        (" B. a cat\n", "B"),
        ("Background noise", "B"),
        ("The answer is A.", "A"),
        ("The answer is\nA.", "A"),
        ("(C)", "C"),
        ("a", ""),
        ("I do not know", ""),
        ("It is A, surely", ""),
        ("", ""),
    ],
)
def test_chosen_letter(response: str, letter: str) -> None:
    assert chosen_letter(response) == letter


def test_choice_counts_what_has_no_letter() -> None:
    given = answers(
        ("A", "A"), ("B", "The answer is C."), ("two", "B"), ("C", "who knows"), more={"choices": ["one", "two"]}
    )
    official, clean = (one(score(given, "choice", profile=profile)) for profile in ("official", "clean"))
    assert (official.value, official.samples, official.details) == (2 / 3, 3, {"right": 2, "fail_num": 1})
    assert (clean.value, clean.samples, clean.details) == (2 / 4, 4, {"right": 2, "fail_num": 1})
    assert len(official.parts) == 4 and official.parts[3].denominator == 0
    assert official.line().endswith("), 3 samples, 1 without a letter, profile official")


def test_one_answer_has_no_interval_to_show() -> None:
    (only,) = score(answers(("A", "B"), more={"choices": ["one", "two"]}), "choice")
    assert only.line() == "here\tchoice 0.000000, 1 samples, profile official"


def test_choice_without_a_single_letter() -> None:
    official = one(score(answers(("A", "no")), "choice"))
    assert (str(official.value), official.samples, official.interval) == ("nan", 0, None)
    assert official.line() == "here\tchoice -, 0 samples, 1 without a letter, profile official"
    assert one(score(answers(("A", "no")), "choice", profile="clean")).value == 0
