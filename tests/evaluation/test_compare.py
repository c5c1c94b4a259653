"""Two runs over the same samples; two runs that cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.compare import compare_runs
from qwen2_audio.evaluation.samples import Answer, Sample

pytest.importorskip("rapidfuzz")
pytest.importorskip("whisper_normalizer")

REFERENCES = ("the cat sat on the mat", "a dog barked", "it rained all night", "we went home")
RIGHT = list(REFERENCES)


def write_run(
    folder: Path,
    responses: Sequence[str],
    *,
    references: Sequence[str] = REFERENCES,
    failed: Sequence[int] = (),
    scores: Sequence[dict[str, Any]] = ({"source": "talk", "metric": "wer", "profile": "clean"},),
    **run: Any,
) -> Path:
    folder.mkdir()
    answers = [
        Answer(Sample(f"s{i}", (), "", reference, "talk", language="en"), response, "no sound" if i in failed else "")
        for i, (reference, response) in enumerate(zip(references, responses, strict=True))
    ]
    lines = [json.dumps(answer.to_json()) + "\n" for answer in answers]
    (folder / "answers.talk.jsonl").write_text("".join(lines), encoding="utf-8")
    whole = [{"value": 0.0, "interval": None, "samples": 4, "failed": 0, "details": {}, **one} for one in scores]
    (folder / "scores.json").write_text(json.dumps({"scores": whole, "run": run}), encoding="utf-8")
    return folder


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_both_values_the_difference_and_what_changed(tmp_path: Path) -> None:
    # A: 2 + 0 + 1 + 0 errors of 16 words; B: 0 + 1 + 1 + 0
    a = write_run(tmp_path / "a", ["the cat sat on a rug", RIGHT[1], "it rained at night", RIGHT[3]])
    b = write_run(tmp_path / "b", [RIGHT[0], "the dog barked", "it rained last night", RIGHT[3]])
    found = compare_runs(a, b)
    _, _, row, *_ = rows(found)
    assert row[:6] == ["talk", "WER %", "clean", "18.75", "12.50", "-6.25"]
    low, high = map(float, row[6].split(" to "))
    assert low < -6.25 < 0 < high
    # of the 4 ways to toss for the two samples that differ, two give -1 and two 3 errors more or less: all are as large
    assert row[7:] == ["1.000", "1", "1", "2", "0"]
    changed = rows(found)[-2:]
    assert changed[0] == ["s0", "better", "2 → 0", RIGHT[0], "the cat sat on **a rug**", RIGHT[0]]
    assert changed[1] == ["s1", "worse", "0 → 1", RIGHT[1], RIGHT[1], "**the** dog barked"]


def test_a_run_and_itself(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ["the cat", *RIGHT[1:]])
    found = compare_runs(a, a)
    assert rows(found)[2][3:] == ["25.00", "25.00", "+0.00", "+0.00 to +0.00", "1.000", "0", "0", "4", "0"]
    assert "changed most" not in found


def test_what_one_run_failed_at_is_left_out_of_both(tmp_path: Path) -> None:
    official = [{"source": "talk", "metric": "wer", "profile": "official"}]
    a = write_run(tmp_path / "a", ["", *RIGHT[1:]], failed=[0], scores=official)
    b = write_run(tmp_path / "b", ["cat", *RIGHT[1:3], "we went"], scores=official)
    assert rows(compare_runs(a, b))[2][3:6] == ["0.00", "10.00", "+10.00"]  # 1 of the 10 words of s1, s2 and s3
    assert rows(compare_runs(a, b))[2][-4:] == ["0", "1", "2", "1"]
    none = write_run(tmp_path / "none", ["", *RIGHT[1:]], failed=[0], scores=official)
    other = write_run(tmp_path / "other", [RIGHT[0], "", "", ""], failed=[1, 2, 3], scores=official)
    assert rows(compare_runs(none, other))[2] == ["talk", "WER %", "official", *["–"] * 8, "4"]  # none in common
    clean = [{"source": "talk", "metric": "wer", "profile": "clean"}]  # for which a failure is an empty answer
    a = write_run(tmp_path / "clean_a", ["", *RIGHT[1:]], failed=[0], scores=clean)
    b = write_run(tmp_path / "clean_b", RIGHT, scores=clean)
    assert rows(compare_runs(a, b))[2][3:6] == ["0.00", "0.00", "+0.00"]
    assert rows(compare_runs(a, b))[2][-4:] == ["0", "0", "3", "1"]


def test_hostile_answers_stay_in_their_cells(tmp_path: Path) -> None:
    kinds = [{"source": "talk", "metric": "accuracy", "profile": "official"}]
    a = write_run(tmp_path / "a", RIGHT, scores=kinds)
    b = write_run(tmp_path / "b", ["x | y\n\n# <script>", *RIGHT[1:]], scores=kinds)
    last = compare_runs(a, b).splitlines()[-1]
    assert last == f"| s0 | worse | 1 → 0 | {RIGHT[0]} | {RIGHT[0]} | x \\| y  # \\<script> |"


def test_judged_sets_by_their_values(tmp_path: Path) -> None:
    kinds = [
        {"source": "chat", "metric": "judge", "profile": "official", "value": value,
         "details": {"judge": judge, "mode": "official"}}
        for value, judge in ((6.5, "gpt-4"), (7.25, "gpt-4"), (7.0, "other"))
    ]  # fmt: skip
    a, b, c = (write_run(tmp_path / name, RIGHT, scores=[kind]) for name, kind in zip("abc", kinds, strict=True))
    assert rows(compare_runs(a, b))[2][:7] == ["chat", "judge's mark", "official", "6.50", "7.25", "+0.75", "–"]
    with pytest.raises(UsageError, match=r"was judged by \('gpt-4', 'official'\), .*; judge both alike"):
        compare_runs(a, c)


def test_one_judge_at_two_addresses_is_two_judges(tmp_path: Path) -> None:
    def run(name: str, **told: str) -> Path:
        details = {"judge": "m", "mode": "official", **told}
        kind = {"source": "chat", "metric": "judge", "profile": "official", "value": 6.5, "details": details}
        return write_run(tmp_path / name, RIGHT, scores=[kind])

    a, b, silent = run("a", address="http://a/v1"), run("b", address="http://b/v1"), run("silent")
    with pytest.raises(UsageError, match=r"judged by \('m', 'official', 'http://a/v1'\), .*b/v1'\); judge both alike"):
        compare_runs(a, b)
    assert rows(compare_runs(a, a))[2][5] == rows(compare_runs(a, silent))[2][5] == "+0.00"


def test_parts_of_a_set_are_not_compared_again(tmp_path: Path) -> None:
    kind = {"source": "talk", "metric": "wer", "profile": "clean"}
    a = write_run(tmp_path / "a", RIGHT, scores=[kind, {**kind, "source": "talk/task=rain"}])
    assert [row[0] for row in rows(compare_runs(a, a))[2:]] == ["talk"]


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", RIGHT)
    with pytest.raises(
        UsageError, match=r"samples are in one of .*a and .*short only, 1 of them, such as 's3'; compare"
    ):
        compare_runs(a, write_run(tmp_path / "short", RIGHT[:3], references=REFERENCES[:3]))
    with pytest.raises(UsageError, match=r"the reference of 's1' in .*a is another than in .*changed; compare"):
        compare_runs(a, write_run(tmp_path / "changed", RIGHT, references=[RIGHT[0], "a hen", *RIGHT[2:]]))
    for name, value in (("profile", "official"), ("metric", "cer"), ("source", "walk")):
        kind = {"source": "talk", "metric": "wer", "profile": "clean", name: value}
        with pytest.raises(UsageError, match=r"has a score of talk by .*, profile .*, and .* has not; compare runs"):
            compare_runs(a, write_run(tmp_path / name, RIGHT, scores=[kind]))
    lost = write_run(tmp_path / "lost", RIGHT)
    (lost / "answers.talk.jsonl").unlink()
    with pytest.raises(UsageError, match=r"lost holds no answers to it"):
        compare_runs(a, lost)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", RIGHT)
    with pytest.raises(
        UsageError, match=r"cannot read .*scores\.json: No such file or directory; give the folder of a fin"
    ):
        compare_runs(a, tmp_path / "nowhere")
    for content in ("{", "[]", '{"scores": [{}], "run": {}}', '{"scores": 1}'):
        (a / "scores.json").write_text(content, encoding="utf-8")
        with pytest.raises(UsageError, match=r"does not hold the scores of a run .*; score the run again"):
            compare_runs(a, a)
