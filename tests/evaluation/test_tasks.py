"""The registry holds what was published, asks with the exact prompts, and says what to do when data are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.samples import read_samples
from qwen2_audio.evaluation.scoring import METRICS as SCORED
from qwen2_audio.evaluation.task import METRICS, load_samples, own_task
from qwen2_audio.evaluation.tasks import GROUPS, TASKS, find_family, find_task, find_tasks
from tests.evaluation.asked import DATA

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "src" / "qwen2_audio" / "evaluation" / "published.json"


def rows_file(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_every_published_column_has_its_task() -> None:
    columns = {
        (section, dataset, column)
        for section, datasets in json.loads(PUBLISHED.read_text()).items()
        if section != "source"
        for dataset, table in datasets.items()
        if dataset != "metric"
        for column in table["columns"]
    }
    placed = [task.published for task in TASKS.values() if task.published]
    assert len(placed) == len(columns) == 25
    assert set(placed) == columns


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("librispeech_test_other", "Detect the language and recognize the speech: <|en|>"),
        ("common_voice_15_zh", "Detect the language and recognize the speech: <|zh|>"),
        ("common_voice_15_yue", "Detect the language and recognize the speech: <|yue|>"),
        ("common_voice_15_fr", "Detect the language and recognize the speech: <|fr|>"),
        ("fleurs_zh", "Detect the language and recognize the speech: <|zh|>"),
        ("aishell2_ios", "Detect the language and recognize the speech: <|zh|>"),
        ("covost_en_zh_test", "Detect the language and translate the speech into Mandarin: <|en|>"),
        ("covost_en_de_test", "Detect the language and translate the speech into German: <|en|>"),
        ("covost_zh_en_test", "Detect the language and translate the speech into English: <|zh|>"),
        ("meld_test", "Recognize the emotion with keywords in English:"),
        ("vocalsound_test", "Classify the human vocal sound to VocalSound in English:"),
    ],
)
def test_prompts_are_the_published_ones_and_bare(name: str, prompt: str) -> None:
    task = find_task(name)
    assert (task.prompt, task.chat) == (prompt, False)


def test_metrics_and_forms() -> None:
    assert set(METRICS) == {*SCORED, "judge"}
    chats = {task.family.name for task in TASKS.values() if task.chat}
    assert chats == {"air_bench_chat", "air_bench_foundation", "mmau", "mmar", "voicebench", "spoken_questions"}
    judged = {name for name, task in TASKS.items() if task.metric == "judge"}
    assert judged >= {f"air_bench_chat_{group}" for group in ("speech", "sound", "music", "mixed")}
    assert {task.metric for task in find_tasks("covost2")} == {"bleu"}
    assert [task.metric for task in GROUPS["scorecard"]] == ["wer", "accuracy", "accuracy", "wer", "word_f1"]


def test_the_target_language_stands_in_the_source() -> None:
    """BLEU is tokenized by it."""
    targets = [task.name.split("_")[-2] for task in find_tasks("covost2")]
    assert targets == ["de", "en", "zh", "en", "en", "en", "en"]


def test_groups() -> None:
    assert [task.name for task in find_tasks("librispeech")] == [
        "librispeech_dev_clean",
        "librispeech_dev_other",
        "librispeech_test_clean",
        "librispeech_test_other",
    ]
    assert len(find_tasks("published")) == 25
    assert find_tasks("emodb") == (find_task("emodb"),)
    assert {task.family.name for task in GROUPS["scorecard"]} == {
        "librispeech_excerpt", "esc10", "emodb", "fsdd", "spoken_questions",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("librispech", "librispeech"), ("covost-en-zh-test", "covost_en_zh_test"), ("MELD", "meld")],
)
def test_an_unknown_name_suggests_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"unknown task '{given}'; did you mean '{nearest}'"):
        find_tasks(given)


def test_unknown_names_without_a_neighbour() -> None:
    with pytest.raises(UsageError, match="unknown task 'xyz'; known are librispeech, common_voice_15"):
        find_task("xyz")
    with pytest.raises(UsageError, match="unknown data set 'covost'; did you mean 'covost2'"):
        find_family("covost")


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_samples(find_task("vocalsound_test"), tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert f"there is no {tmp_path}/vocalsound.jsonl or {tmp_path}/vocalsound/manifest.jsonl" in message
    assert "vs_release_16k.zip from https://github.com/YuanGongND/vocalsound" in message
    assert "audio_16k/SPEAKER_NUMBER_SOUND.wav" in message
    assert "qwen2-audio data prepare vocalsound FOLDER" in message
    with pytest.raises(UsageError, match=r"needs --data, the folder with vocalsound\.jsonl"):
        load_samples(find_task("vocalsound_test"), None)


def test_a_task_takes_its_own_rows(tmp_path: Path) -> None:
    rows_file(
        tmp_path / "librispeech.jsonl",
        {"id": "a", "audio": "a.flac", "prompt": "p", "gt": "x", "source": "librispeech_test_clean"},
        {"id": "b", "audio": ["b.flac", "https://host/c.wav"], "gt": "y", "source": "librispeech_test_other"},
        {"id": "c", "audio": "/d.flac", "prompt": "", "gt": "z", "source": "librispeech_test_other", "language": "de"},
    )
    first, second = load_samples(find_task("librispeech_test_other"), tmp_path)
    assert first.audio == (str(tmp_path / "b.flac"), "https://host/c.wav") and second.audio == ("/d.flac",)
    assert first.prompt == "Detect the language and recognize the speech: <|en|>"
    assert (first.language, second.language, first.chat) == ("en", "de", False)
    assert len(load_samples(find_task("librispeech_test_other"), tmp_path, limit=1)) == 1
    with pytest.raises(
        UsageError, match=r"no rows of librispeech_dev_clean .*there are the sources librispeech_test_c"
    ):
        load_samples(find_task("librispeech_dev_clean"), tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"audio": "a.wav", "prompt": "p"}], "row 1 needs a text under 'gt'"),
        ([{"audio": "a.wav", "gt": None}], "row 1 needs a text under 'gt', got None"),
        ([{"id": 7, "audio": "a", "gt": ""}, {"id": 7, "audio": "b", "gt": ""}], "two rows of my_rows have the id '7'"),
        ([], "my rows.jsonl has no rows of my_rows"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    file = rows_file(tmp_path / "my rows.jsonl", *rows)
    with pytest.raises(UsageError, match=message):
        load_samples(own_task(file, "wer", language="en"), None)


def test_rows_of_ones_own(tmp_path: Path) -> None:
    file = rows_file(tmp_path / "mine.jsonl", {"audio": "a.wav", "gt": "x"}, {"audio": [], "gt": "y", "chat": False})
    one, two = load_samples(own_task(file, "accuracy", chat=True, language="fr"), None)
    assert (one.id, one.source, one.chat, one.language) == ("1", "mine", True, "fr")
    assert (two.id, two.audio, two.chat) == ("2", (), False)
    with pytest.raises(UsageError, match="unknown metric 'word'; use one of wer, cer"):
        own_task(file, "word")


@pytest.mark.skipif(not DATA.is_dir(), reason="the recordings are not here")
@pytest.mark.parametrize(("name", "count"), [("librispeech_excerpt", 50), ("esc10", 80), ("emodb", 78), ("fsdd", 300)])
def test_the_scorecard_asks_what_was_held_out(name: str, count: int) -> None:
    samples = load_samples(find_task(name), DATA)
    assert len(samples) == count
    assert {sample.source for sample in samples} == {name}
    assert all(Path(audio).is_file() for sample in samples for audio in sample.audio)
    if name == "emodb":
        assert {sample.speaker for sample in samples} == {"09", "12"}


def test_nothing_is_not_the_word_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    names = ("id", "prompt", "source", "language", "speaker", "error", "duration", "more", "audio")
    file.write_text(json.dumps({"gt": "x", **dict.fromkeys(names)}))
    [sample] = read_samples(file)
    assert (sample.id, sample.prompt, sample.source, sample.speaker) == ("1", "", "rows", "")
    assert (sample.audio, sample.duration, dict(sample.more)) == ((), 0, {})
    for key, value in (
        ("duration", "3 s"),
        ("more", 3),
        ("audio", 5),
        ("audio", [None]),
        ("chat", "false"),
        ("prompt", ["x"]),
    ):
        file.write_text(json.dumps({"gt": "x", key: value}))
        with pytest.raises(UsageError, match=f"row 1 needs .* under '{key}'"):
            read_samples(file)


@pytest.mark.parametrize("key", ["audios", "wav"])
def test_no_row_is_asked_without_its_recording(tmp_path: Path, key: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({key: "a.wav", "gt": "x"}))
    with pytest.raises(UsageError, match=f"row 1 names its recording under '{key}'"):
        read_samples(file)
    file.write_text(json.dumps({"audio": "a.wav", key: "elsewhere.wav", "gt": "x"}))  # one of the keys that are ignored
    assert len(read_samples(file)) == 1
