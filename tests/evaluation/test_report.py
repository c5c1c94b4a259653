"""The report says what was measured, beside all that was published, whatever stands in the answers."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.published import PublishedTable, published
from qwen2_audio.evaluation.report import write_report
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Part, Score
from tests.evaluation.reported import ANSWERS, RUN, SMALL, answer, markdown_rows

pytest.importorskip("matplotlib")
pytest.importorskip("rapidfuzz")

SOURCES = [
    *(f"librispeech_{split}" for split in ("dev_clean", "dev_other", "test_clean", "test_other")),
    *(f"common_voice_15_{language}" for language in ("en", "zh", "yue", "fr")),
    "fleurs_zh",
    *(f"aishell2_{device}" for device in ("mic", "ios", "android")),
    *(f"covost_{pair}_test" for pair in ("en_de", "de_en", "en_zh", "zh_en", "es_en", "fr_en", "it_en")),
    "meld_test",
    "vocalsound_test",
    *(f"air_bench_chat_{group}" for group in ("speech", "sound", "music", "mixed")),
]
"""In the order of the published columns."""
METRICS = ["wer"] * 12 + ["bleu"] * 7 + ["accuracy"] * 2 + ["judge"] * 4
VALUES = [0.0171, 0.0362, 0.0173, 0.0404, 0.0871, 0.0652, 0.0593, 0.0964, 0.0705, 0.0326, 0.0317, 0.0298,
          29.61, 33.62, 45.63, 24.04, 38.75, 37.26, 35.27, 0.5358, 0.93951, 7.241, 6.832, 6.733, 6.424]  # fmt: skip
SHOWN = ["1.71", "3.62", "1.73", "4.04", "8.71", "6.52", "5.93", "9.64", "7.05", "3.26", "3.17", "2.98",
         "29.6", "33.6", "45.6", "24.0", "38.8", "37.3", "35.3", "0.536", "0.9395", "7.24", "6.83", "6.73", "6.42"]  # fmt: skip

FAILED = answer(Part("u4", 0, 0), 31.0, error="the clip is | truncated")


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what the page refers to, shows and says."""

    ALONE = frozenset({"meta", "path", "use", "rect"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta",):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def expected_rows(table: PublishedTable) -> list[list[str]]:
    """As the tables must show them, written by another way than the report's."""
    digits = {"MELD": 3, "VocalSound": 4, "AIR-Bench chat": 2}.get(table.title, 1)
    return [
        [name, *("–" if x is None else format(x, f".{digits}f") for x in row)] for name, row in table.systems.items()
    ]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    scores = [Score(*of, "official", value, 9) for *of, value in zip(SOURCES, METRICS, VALUES, strict=True)]
    write_report(folder, scores, {"answerer": {"model": "org/big"}})
    return folder


def test_every_published_number_stands_beside_ours(full: Path) -> None:
    html = Page(full / "report.html").rows
    markdown = list(markdown_rows(full / "report.md"))
    ours = iter(SHOWN)
    for table in published():
        for row in [*expected_rows(table), ["big (this run)", *(next(ours) for _ in table.columns)]]:
            assert row in html
            assert row in markdown
    assert next(ours, None) is None
    for name in ("radar", *(table.dataset for table in published())):
        assert f"({name}.png)" in (full / "report.md").read_text(encoding="utf-8")
        assert (full / f"{name}.png").stat().st_size and (full / f"{name}.svg").stat().st_size


def test_the_csv_has_a_row_a_number(full: Path) -> None:
    with open(full / "report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    count = sum(value is not None for table in published() for row in table.systems.values() for value in row)
    assert len(rows) == count + len(SOURCES)
    mine = {(row["set"], row["column"]): row for row in rows if row["system"] == "big (this run)"}
    assert mine["librispeech", "test-other"]["value"] == "4.04"
    assert mine["covost2", "it-en"]["value"] == "35.27"
    theirs = next(row for row in rows if row["system"] == "SpeechNet")
    assert (theirs["column"], theirs["value"], theirs["unit"]) == ("test-clean", "30.7", "WER %")


@pytest.mark.usefixtures("no_charts")
def test_a_small_report_word_by_word(tmp_path: Path) -> None:
    write_report(tmp_path, [SMALL], RUN, [*ANSWERS, FAILED])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith(
        """# Evaluation of mini

Sets: 1. Some samples gave no answer, or got no mark: the column Failed counts them.

## Scores

| Set | Metric | Profile | Score | 95 % interval | Scored | Failed | Sub / del / ins |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
| librispeech_test_clean | WER % | clean | 57.14 | 0.00–66.67 | 3 | 1 | 1 / 2 / 1 |

Intervals are from a bootstrap over the answers of a set.

## Beside the published numbers

Only the first 4 samples of each set were asked; the published numbers are of all.
"""
    )
    assert "| **mini (this run)** | **–** | **–** | **57.14 (0.00–66.67)** | **–** |\n" in text
    assert text.endswith(
        """
## The worst answers

### librispeech_test_clean: WER %, clean

| Sample | Reference, normalised | Response, normalised | Errors | Sub / del / ins |
| --- | --- | --- | ---: | ---: |
| u1 | **the** cat sat | **a** cat sat **down** | 2 of 3 | 1 / 0 / 1 |
| u3 | good **night all** | good | 2 of 3 | 0 / 2 / 0 |

## Failures

| Set | Sample | What was wrong |
| --- | --- | --- |
| librispeech_test_clean | u4 | the clip is \\| truncated |

## Settings and versions

| Setting | Value |
| --- | --- |
| model | models/mini |
| batch_size | 4 |
| generation.max_new_tokens | 256 |
| generation.stop | none |
| torch | 2.11 |
| limit | 4 |
"""
    )
    lengths = [row for row in markdown_rows(tmp_path / "report.md") if row[3:4] and row[3].endswith(" s")]
    assert [row[3:6] for row in lengths] == [
        ["0–5 s", "1", "66.67"],
        ["5–10 s", "1", "0.00"],
        ["20–30 s", "1", "66.67"],
    ]
    assert "<mark>the</mark> cat sat</td>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ["mini (this run)", "–", "–", "–", "–"] in Page(tmp_path / "report.html").rows  # of what was not measured
    for table in published():
        assert all(row in list(markdown_rows(tmp_path / "report.md")) for row in expected_rows(table))


@pytest.mark.usefixtures("no_charts")
def test_the_json_files(tmp_path: Path) -> None:
    nothing = Score("voicebench_sd_qa", "judge", "clean", float("nan"), 0, 3, details={"scale": "1 to 5"})
    write_report(tmp_path, [SMALL, nothing], {**RUN, "path": Path("x")}, [*ANSWERS, FAILED])
    held = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert held["run"] == {**RUN, "path": "x"}
    assert held["scores"][0] == {
        "source": "librispeech_test_clean", "metric": "wer", "profile": "clean", "value": 4 / 7, "interval": [0.0, 2 / 3],
        "samples": 3, "failed": 1, "details": {},
    }  # fmt: skip
    assert held["scores"][1]["value"] is None
    with open(tmp_path / "report.csv", encoding="utf-8", newline="") as file:
        ours, none = list(csv.DictReader(file))[-2:]
    assert {"set": "librispeech", "column": "test-clean", "value": "57.142857", "low": "0.0"}.items() <= ours.items()
    assert {"set": "voicebench_sd_qa", "column": "", "value": "", "samples": "0", "failed": "3"}.items() <= none.items()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [(one["id"], one["numerator"]) for one in report["worst"]] == [("u1", 2), ("u3", 2)]
    assert report["failures"] == [{"source": "librispeech_test_clean", "id": "u4", "reason": "the clip is | truncated"}]
    librispeech = report["published"][0]
    assert librispeech["systems"]["Qwen2-Audio hf"] == [1.7, 3.6, 1.7, 4.0]
    assert librispeech["systems"]["mini (this run)"] == [None, None, pytest.approx(400 / 7), None]
    assert any(row[:5] == ["voicebench_sd_qa", "judge's mark (1 to 5)", "clean", "–", "–"]
               for row in markdown_rows(tmp_path / "report.md"))  # fmt: skip


@pytest.mark.usefixtures("no_charts")
def test_a_set_without_any_answer_is_in_every_file(tmp_path: Path) -> None:
    """Of a published set, of one that is not, and of a part; beside one that was measured."""
    nan = float("nan")
    scores = [
        Score("librispeech_dev_clean", "wer", "official", nan, 0, 2), Score("mine", "wer", "official", nan, 0, 3), SMALL,
        Score("mine/task=music", "wer", "official", nan, 0, 1),
    ]  # fmt: skip
    lost = Answer(Sample("x", (), "", "gone", "mine"), "", "no such file")
    write_report(tmp_path, scores, {"model": "m"}, [*ANSWERS, lost])
    for rows in (list(markdown_rows(tmp_path / "report.md")), Page(tmp_path / "report.html").rows):
        cells = [[cell.strip() for cell in row] for row in rows]
        assert ["librispeech_dev_clean", "WER %", "official", "–", "–", "0", "2", "–"] in cells
        assert ["mine", "WER %", "official", "–", "–", "0", "3", "–"] in cells
        assert ["m (this run, official)", "–", "–", "–", "–"] in cells
        assert ["mine", "WER %", "official", "music", "0", "–", "–"] in cells
        assert ["mine", "x", "no such file"] in cells
    for name in ("report.md", "report.html", "report.csv", "report.json", "scores.json"):
        assert not re.search(r"\bnan\b", (tmp_path / name).read_text(encoding="utf-8"), re.IGNORECASE)
    held = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert [(one["value"], one["samples"], one["failed"]) for one in held[:2]] == [(None, 0, 2), (None, 0, 3)]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["published"][0]["systems"]["m (this run, official)"] == [None] * 4
    assert report["slices"][-1] | {"value": None, "samples": 0, "slice": "music"} == report["slices"][-1]
    with open(tmp_path / "report.csv", encoding="utf-8", newline="") as file:
        published_set, own, _ = list(csv.DictReader(file))[-3:]
    assert (published_set["set"], published_set["column"], own["set"]) == ("librispeech", "dev-clean", "mine")
    for row in (published_set, own):
        assert [row[key] for key in ("value", "low", "high", "samples", "substitutions")] == ["", "", "", "0", ""]


HOSTILE = "<script>alert(1)</script> | **bold** ![x](http://evil.example/x.png)\n\n# heading"
HOSTILE += " \x00\x1b[31m \u202e $x$ `code` \ud800"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    counts = {"substitutions": 1, "deletions": 0, "insertions": 0}
    parts = (Part(HOSTILE, 9, 9, HOSTILE, "x" + HOSTILE, counts), Part("u2", 0, 1, "a", "a", counts))
    labels = (Part("l1", 0, 1, HOSTILE, HOSTILE * 9), Part("l2", 1, 1, "a", "a"))
    scores = [Score(HOSTILE, "wer", "clean", 0.5, 2, 1, (0.1, 0.9), parts),
              Score("meld_test", "accuracy", "clean", 0.5, 2, 0, None, labels, {"note": HOSTILE})]  # fmt: skip
    sample = Sample(HOSTILE, (), "", HOSTILE, HOSTILE, duration=1)
    write_report(tmp_path, scores, {"model": HOSTILE, HOSTILE: HOSTILE}, [Answer(sample, "", HOSTILE)])
    page = Page(tmp_path / "report.html")
    assert "script" not in page.tags and "img" not in page.tags
    widths = {len(row) for row in markdown_rows_unescaped(tmp_path / "report.md")}
    assert widths <= {2, 3, 4, 5, 7, 8}  # those of the tables there are
    for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines():
        assert "<script" not in line.replace("\\<", "")
        assert "![x]" not in line.replace("\\[", "")
        assert not line.startswith("# heading")
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not {"\x00", "\x1b", "\u202e"} & set(text)
        assert "alert(1)" in text
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def markdown_rows_unescaped(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            yield line.replace("\\|", "").strip("|").split("|")


def test_the_page_needs_nothing_from_elsewhere(full: Path) -> None:
    page = Page(full / "report.html")
    assert "http" not in (full / "report.html").read_text(encoding="utf-8")
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "img", "iframe", "object"} & page.tags and "svg" in page.tags


def test_it_is_the_same_each_time_and_leaves_no_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, [SMALL], RUN, ANSWERS)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["by_length.png", "by_length.svg", "librispeech.png", "librispeech.svg", "radar.png", "radar.svg",
                     "report.csv", "report.html", "report.json", "report.md", "scores.json"]  # fmt: skip
    before = {name: (tmp_path / "a" / name).read_bytes() for name in files}
    assert before == {name: (tmp_path / "b" / name).read_bytes() for name in files}

    def full_disk(path: Path, _target: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(UsageError, match=r"cannot write .*scores\.json: No space left on device"):
        write_report(tmp_path / "a", [], {})
    assert before == {name: (tmp_path / "a" / name).read_bytes() for name in files}


def test_without_matplotlib_the_scores_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "qwen2-audio\[eval\]"'):
        write_report(tmp_path, [SMALL], RUN)
    assert {"scores.json", "report.json", "report.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.usefixtures("no_charts")
def test_parts_of_a_set_are_slices_of_it(tmp_path: Path) -> None:
    whole = Score("mmau_test_mini", "string_match", "official", 0.5, 4, parts=(Part("a", 0, 1, "dog | cat", "a bird"),))
    music = Score("mmau_test_mini/task=music", "string_match", "official", 0.25, 2, interval=(0.0, 0.5))
    write_report(tmp_path, [whole, music], {"model": "m"})
    rows = list(markdown_rows_unescaped(tmp_path / "report.md"))
    stripped = [[cell.strip() for cell in row] for row in rows]
    assert ["mmau_test_mini", "accuracy (string match)", "official", "music", "2", "0.250", "0.000–0.500"] in stripped
    assert "### By task" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not any(row[0].startswith("mmau_test_mini/") for row in stripped)
