"""Scores by hand in both profiles, the published anchors, sacrebleu's command line, and what must never disappear."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.bleu import bleu_tokenizer
from qwen2_audio.evaluation.error_rate import edits
from qwen2_audio.evaluation.normalizers.transcript import primary_language, transcript_units
from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scoring import score
from tests.evaluation.asked import DATA, answers, one

ANCHORS = DATA / "wer_anchors_fbai"


# transcripts


@pytest.mark.parametrize(
    ("language", "text", "official", "clean"),
    [
        ("en", "<|en|> It's  $20.50 , 20% !", "it is 20 50 20", "it is $20.50 20%"),
        ("en", "£5000000 and 3.14", "5000000 and 3 14", "£5000000 and 3.14"),
        ("en", "2.5% of minus five", "2 5 of 5", "2.5% of -5"),
        ("en", 'Don\'t - ever - say "cause".', "do not ever say cause", "do not ever say cause"),
        ("de", "Straße - (leer) <|de|>Öl", "straße öl", "straße öl"),
    ],
)
def test_words(language: str, text: str, official: str, clean: str) -> None:
    assert transcript_units(text, language, "official") == official.split()
    assert transcript_units(text, language, "clean") == clean.split()


@pytest.mark.parametrize(
    ("text", "official", "clean"),
    [
        ("<|zh|>今天 25 号。", "今天二十五号", "今天二十五号"),
        ("1 234 个 OK", "一千两百三十四个ok", "一千两百三十四个ok"),  # spaces vanish before numbers are read
        ("說ＯＫ，５０％！", "說ｏｋ百分之五十零", "说ok百分之五十"),
        ("The text is: '好' .", "thetextis好", "thetextis好"),  # Latin letter by letter
    ],
)
def test_mandarin_characters(text: str, official: str, clean: str) -> None:
    assert transcript_units(text, "zh", "official") == list(official)
    assert transcript_units(text, "zh", "clean") == list(clean)


def test_cer_counts_characters_without_spaces() -> None:
    result = one(score(answers(("ab cd", "abcd"), ("to be", "to bee")), "cer", language="fr"))
    assert (result.value, result.details["reference_units"], result.details["insertions"]) == (1 / 8, 8, 1)


@pytest.mark.parametrize(
    ("code", "language"),
    [("en", "en"), ("zh-CN", "zh"), ("zh_tw", "zh"), ("cmn_hans_cn", "zh"), ("YUE", "yue"), ("fr_fr", "fr")],
)
def test_language_codes(code: str, language: str) -> None:
    assert primary_language(code) == language


# error rates


def test_error_rate_by_hand() -> None:
    """one substitution, one deletion, two insertions; four and two words in the references, none in the last."""
    found = score(
        answers(("a big red dog", "a pig dog"), ("well, yes", "well yes sir"), ("(noise)", "what")),
        "wer",
        language="en",
    )
    result = one(found)
    assert result.value == 4 / 6
    assert (result.metric, result.profile, result.samples, result.failed) == ("wer", "official", 3, 0)
    assert result.details == {
        "errors": 4,
        "reference_units": 6,
        "substitutions": 1,
        "deletions": 1,
        "insertions": 2,
        "empty_references": 1,
        "languages": ["en"],
    }
    first, second, last = result.parts
    assert (first.numerator, first.denominator, first.reference, first.response) == (2, 4, "a big red dog", "a pig dog")
    assert first.counts == {"substitutions": 1, "deletions": 1, "insertions": 0}
    assert (second.numerator, second.denominator) == (1, 2)
    assert (last.numerator, last.denominator) == (1, 0)
    assert result.interval is not None and result.interval[0] <= result.value <= result.interval[1]


def test_an_empty_first_reference_is_no_crash() -> None:
    result = one(score(answers(("", ""), ("你好", "你")), "wer", language="zh"))
    assert (result.value, result.details["empty_references"], result.details["deletions"]) == (0.5, 1, 1)


@pytest.mark.parametrize("profile", ["official", "clean"])
def test_only_empty_references(profile: str) -> None:
    with pytest.raises(UsageError, match="wer of here has nothing to divide by: all 2 references are empty"):
        score(answers(("", "a"), ("[noise]", "")), "wer", profile=profile, language="en")


def _distance(a: list[str], b: list[str]) -> int:
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


WORDS = st.lists(st.sampled_from(["a", "b", "the", "你", "c'est"]), max_size=8)


@given(WORDS, WORDS)
def test_edits_are_as_few_as_can_be(reference: list[str], response: list[str]) -> None:
    counts = edits(reference, response)
    assert sum(counts.values()) == _distance(reference, response)
    assert counts["insertions"] - counts["deletions"] == len(response) - len(reference)


def test_one_score_a_source_each_sample_in_its_language() -> None:
    mixed = [
        *answers(("两百人", "200人"), language="zh", source="b"),
        *answers(("l'eau", "l eau"), language="fr", source="a"),
        *answers(("it's", "it is"), language="en", source="a"),
    ]
    a, b = score(mixed, "wer")
    assert (a.source, a.samples, a.value, a.details["languages"]) == ("a", 2, 0.0, ["en", "fr"])
    assert (b.source, b.samples, b.value, b.details["reference_units"]) == ("b", 1, 0.0, 3)
    assert [part.reference for part in (*a.parts, *b.parts)] == ["l eau", "it is", "两百人"]


def test_clips_without_an_answer() -> None:
    """official leaves them out, clean counts their two words as deleted; both say how many there are."""
    given = answers(("one more word", "one more"), ("two words", ""), language="en")
    given[1] = Answer(given[1].sample, "", error="cannot read the clip")
    official, clean = (one(score(given, "wer", profile=profile)) for profile in ("official", "clean"))
    assert (official.value, official.samples, official.failed) == (1 / 3, 1, 1)
    assert (clean.value, clean.samples, clean.failed, clean.details["deletions"]) == (3 / 5, 2, 1, 3)


@pytest.mark.parametrize("metric", ["wer", "cer", "bleu", "accuracy", "prefix", "string_match", "choice"])
def test_a_source_without_any_answer_leaves_the_others_scored(metric: str) -> None:
    """official: nan of no samples; clean knows empty answers: everything is deleted, nothing is right."""
    pytest.importorskip("sacrebleu")
    there = answers(("A", "A"), language="en", source="b_x_en_test", more={"choices": ["A", "B"]})
    failed = [
        Answer(replace(there[0].sample, id=str(n), source="a_x_en_test"), "", error="no such file") for n in (1, 2)
    ]
    none, good = score([*failed, *there], metric)
    assert (none.source, none.metric, none.profile) == ("a_x_en_test", metric, "official")
    assert math.isnan(none.value) and (none.samples, none.failed, none.interval, none.parts) == (0, 2, None, ())
    assert (good.samples, good.failed) == (1, 0) and not math.isnan(good.value)
    clean, _ = score([*failed, *there], metric, profile="clean")
    assert (clean.value, clean.samples, clean.failed) == (1.0 if metric in ("wer", "cer") else 0.0, 2, 2)


def _lines(path: Path) -> dict[str, str]:
    pairs = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(pairs)  # type: ignore[arg-type]


@pytest.mark.skipif(not ANCHORS.is_dir(), reason="the anchors are not here")
@pytest.mark.parametrize(
    ("split", "system", "value"),
    [
        ("test-clean", "b1.rnnt_baseline", "0.035378"),
        ("test-clean", "s5.s3+db-nnlm.biasing_100", "0.018500"),
        ("test-other", "b1.rnnt_baseline", "0.095155"),
        ("test-other", "s5.s3+db-nnlm.biasing_100", "0.057108"),
    ],
)
def test_anchors(split: str, system: str, value: str) -> None:
    references, responses = _lines(ANCHORS / f"{split}.ref.tsv"), _lines(ANCHORS / f"{split}.{system}.hyp.tsv")
    pairs = [(text, responses[name]) for name, text in references.items()]
    assert f"{one(score(answers(*pairs), 'wer', language='en')).value:.6f}" == value


# BLEU

TRANSLATED = {
    "covost2_de_en_test": [
        ("The cat sat on the mat.", "The cat sat on a mat ."),
        ("It is raining heavily today.", "Today it rains heavily."),
        ("He bought three apples, didn't he?", "He bought three apples, didn't he?"),
        ("", "Nothing."),
    ],
    "covost2_en_zh_test": [
        ("今天天气很好。", "今天的天气很好。"),
        ("他买了3个苹果。", "他买了三个苹果。"),
        ("我们明天去北京开会。", " 我们明天去北京开会。"),
    ],
}


@pytest.mark.parametrize(("source", "tokenizer"), [("covost2_de_en_test", "13a"), ("covost2_en_zh_test", "zh")])
def test_bleu_equals_the_command_line(source: str, tokenizer: str, tmp_path: Path) -> None:
    result = one(score(answers(*TRANSLATED[source], source=source), "bleu"))
    references, responses = tmp_path / "references", tmp_path / "responses"
    for path, side in ((references, 0), (responses, 1)):
        path.write_text("".join(f"{pair[side]}\n" for pair in TRANSLATED[source]), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(references), "-i", str(responses), "-b", "-w", "8"]
    printed = subprocess.run([*command, "-tok", tokenizer], check=True, capture_output=True, text=True).stdout
    assert f"{result.value:.8f}" == printed.strip()
    assert 20 < result.value < 90
    assert f"|tok:{tokenizer}|" in result.details["signature"]


def test_bleu_of_the_parts_is_that_of_the_whole() -> None:
    result = one(score(answers(*TRANSLATED["covost2_de_en_test"]), "bleu", language="en"))
    assert [part.counts["reference_length"] for part in result.parts] == [7, 6, 8, 0]
    assert result.parts[2].counts["matches_4"] == result.parts[2].counts["ngrams_4"] == 5
    for name in ("hypothesis_length", "reference_length"):
        assert sum(part.counts[name] for part in result.parts) == result.details[name]
    for order, precision in enumerate(result.details["precisions"], 1):
        matches, ngrams = (
            sum(part.counts[f"{name}_{order}"] for part in result.parts) for name in ("matches", "ngrams")
        )
        assert 100 * matches / ngrams == pytest.approx(precision, abs=1e-4)
    assert result.details["empty_references"] == 1
    assert result.interval is not None and result.interval[0] < result.value < result.interval[1]


@pytest.mark.parametrize(
    ("source", "language", "official", "clean"),
    [
        ("covost2_en_zh_test", None, "zh", "zh"),
        ("covost2_en_zh-CN_test", None, "13a", "zh"),
        ("covost2_en_ja_test", None, "ja-mecab", "ja-mecab"),
        ("covost2_zh_en_test", None, "13a", "13a"),
        ("all", None, "13a", "13a"),
        ("all", "zh-CN", "zh", "zh"),
        ("all", "cmn", "zh", "zh"),
        ("all", "jpn", "ja-mecab", "ja-mecab"),
        ("covost2_en_zh_test", "de", "13a", "13a"),
    ],
)
def test_bleu_tokenizer(source: str, language: str | None, official: str, clean: str) -> None:
    assert bleu_tokenizer(source, "official", language) == official
    assert bleu_tokenizer(source, "clean", language) == clean


def test_chinese_by_the_wrong_tokenizer_is_worth_nothing() -> None:
    given = answers(*TRANSLATED["covost2_en_zh_test"][:2], source="covost2_en_zh-CN_test")
    assert one(score(given, "bleu")).value < 5 < 30 < one(score(given, "bleu", profile="clean")).value


# mistakes


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        ("were", {}, "unknown metric 'were'; did you mean 'wer'"),
        ("meteor", {}, "unknown metric 'meteor'; use one of wer, cer"),
        ("wer", {"profile": "Official"}, "unknown profile 'Official'; did you mean 'official'"),
        ("wer", {}, "needs to know the language, and the sample '1' names none"),
        ("wer", {"language": "english"}, "ISO code such as en, zh, yue or fr; got 'english'"),
        ("bleu", {"language": "Chinese"}, "ISO code such as en, zh, yue or fr; got 'Chinese'"),
        ("string_match", {}, "the sample '1' needs its choices"),
        ("choice", {}, "needs its choices"),
    ],
)
def test_mistakes_are_named(metric: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        score(answers(("yes", "no")), metric, **settings)


def test_a_reference_that_is_no_choice() -> None:
    with pytest.raises(UsageError, match="is no letter of ABCD and none of its choices: 'three'"):
        score(answers(("three", "A"), more={"choices": ["one", "two"]}), "choice")


def test_no_answers() -> None:
    with pytest.raises(UsageError, match="no answers to score"):
        score([], "wer")


@pytest.mark.parametrize(("metric", "package"), [("wer", "rapidfuzz.distance"), ("bleu", "sacrebleu.metrics.bleu")])
def test_missing_packages_name_the_command(metric: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r'pip install "qwen2-audio\[eval\]"'):
        score(answers(("a", "b")), metric, language="en")
