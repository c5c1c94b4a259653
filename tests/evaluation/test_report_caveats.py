"""Numbers the published ones do not compare with, or not quite: by profile, by how they were asked, by metric."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwen2_audio.evaluation.report import write_report
from qwen2_audio.evaluation.scores import Score
from tests.evaluation.reported import ANSWERS, RUN, SMALL, markdown_rows

pytest.importorskip("matplotlib")
pytest.importorskip("rapidfuzz")


@pytest.mark.usefixtures("no_charts")
def test_two_profiles_get_a_row_each(tmp_path: Path) -> None:
    scores = [Score("fleurs_zh", "wer", "official", 0.07, 5), Score("fleurs_zh", "wer", "clean", 0.06, 5),
              Score("meld_test", "accuracy", "official", 0.5, 5)]  # fmt: skip
    write_report(tmp_path, scores, {"model": "m"})
    rows = list(markdown_rows(tmp_path / "report.md"))
    assert ["m (this run, official)", "7.00"] in rows and ["m (this run, clean)", "6.00"] in rows
    assert ["m (this run)", "0.500"] in rows


@pytest.mark.usefixtures("no_charts")
def test_the_profile_stands_beside_the_published_numbers(tmp_path: Path) -> None:
    scores = [SMALL, Score("meld_test", "accuracy", "official", 0.5, 5)]
    write_report(tmp_path, scores, RUN, ANSWERS)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    note = "This run's numbers are of the profile clean; the published ones compare with official."
    sections = {part.partition(":")[0]: part for part in text.split("\n### ")}
    assert note in sections["LibriSpeech"] and note not in sections["MELD"] and note not in sections["Fleurs"]
    assert note in (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'")
    tables = {
        one["set"]: one for one in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["published"]
    }
    assert tables["librispeech"]["profiles"] == {"mini (this run)": "clean"}
    assert tables["meld"]["profiles"] == {"mini (this run)": "official"}
    assert tables["fleurs"]["profiles"] == {"mini (this run)": ""}


@pytest.mark.usefixtures("no_charts")
def test_how_a_server_was_asked_stands_beside_the_published_numbers(tmp_path: Path) -> None:
    note = "are of bare prompts, and do not compare with this run's. Here bare prompts were asked in a chat."
    server = {"answerer": {"model": "m", "bare_prompts": "asked in a chat"}}
    chats = [replace(one, sample=replace(one.sample, chat=True)) for one in ANSWERS]
    for run, answers, told in ((server, ANSWERS, True), (server, chats, False), ({"model": "m"}, ANSWERS, False)):
        write_report(tmp_path, [SMALL], run, answers)
        assert (note in (tmp_path / "report.md").read_text(encoding="utf-8")) is told


@pytest.mark.usefixtures("no_charts")
def test_a_character_rate_is_no_word_error_rate(tmp_path: Path) -> None:
    write_report(tmp_path, [Score("librispeech_test_clean", "cer", "official", 0.0123, 5)], {"model": "m"})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| **m (this run)** | **–** | **–** | **–** | **–** |" in text
    assert ["librispeech_test_clean", "CER %", "official", "1.23"] in [
        row[:4] for row in markdown_rows(tmp_path / "report.md")
    ]
