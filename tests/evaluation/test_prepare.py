"""Small trees in the layouts that people download become the official rows; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare import librispeech, prepare
from qwen2_audio.evaluation.task import load_samples
from qwen2_audio.evaluation.tasks import FAMILIES, find_task
from tests.tiny import sound


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def record(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".wav", ".flac"):
        soundfile.write(path, sound(seconds), 16_000)
    else:
        path.write_bytes(b"not decoded here")


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_librispeech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = tmp_path / "LibriSpeech" / "test-clean" / "1089" / "134686"
    write(chapter / "1089-134686.trans.txt", "1089-134686-0000 HE HOPED\n1089-134686-0001 STUFF IT\n")
    record(chapter / "1089-134686-0000.flac", 0.5)
    record(chapter / "1089-134686-0001.flac", 0.75)
    said: list[str] = []
    with pytest.raises(UsageError, match=r"test-clean holds 2 utterances of 2620; unpack test-clean\.tar\.gz again"):
        prepare("librispeech", tmp_path)
    monkeypatch.setitem(librispeech._ROWS, "test-clean", 2)
    file = prepare("librispeech", tmp_path, say=said.append)
    assert file == tmp_path / "librispeech.jsonl"
    first, second = rows_of(file)
    assert first == {
        "id": "1089-134686-0000",
        "audio": "LibriSpeech/test-clean/1089/134686/1089-134686-0000.flac",
        "prompt": "Detect the language and recognize the speech: <|en|>",
        "gt": "HE HOPED",
        "source": "librispeech_test_clean",
        "language": "en",
        "speaker": "1089",
        "duration": 0.5,
    }
    assert (second["gt"], second["duration"]) == ("STUFF IT", 0.75)
    assert f"left out: there is no {tmp_path}/LibriSpeech/dev-clean" in said
    assert said[-1] == "librispeech_test_clean: 2 rows"
    samples = load_samples(find_task("librispeech_test_clean"), tmp_path)
    assert all(Path(sample.audio[0]).is_file() for sample in samples)


def test_another_place_gets_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(librispeech._ROWS, "dev-other", 1)
    chapter = tmp_path / "LibriSpeech" / "dev-other" / "1" / "2"
    write(chapter / "1-2.trans.txt", "1-2-0 A\n")
    record(chapter / "1-2-0.flac")
    file = prepare("librispeech", tmp_path / "LibriSpeech", tmp_path / "elsewhere" / "rows.jsonl")
    assert rows_of(file)[0]["audio"] == str((chapter / "1-2-0.flac").resolve())


def test_missing_recordings_are_counted_and_the_first_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(librispeech._ROWS, "test-other", 3)
    chapter = tmp_path / "test-other" / "1" / "2"
    write(chapter / "1-2.trans.txt", "1-2-0 A\n1-2-1 B\n1-2-2 C\n")
    record(chapter / "1-2-1.flac")
    with pytest.raises(UsageError) as error:
        prepare("librispeech", tmp_path)
    message = str(error.value)
    assert message.startswith(
        f"2 of 3 recordings of LibriSpeech are missing, the first is {chapter}/1-2-0.flac; fetch "
    )
    assert "https://www.openslr.org/12" in message and "SPEAKER-CHAPTER.trans.txt" in message
    assert not (tmp_path / "librispeech.jsonl").exists()


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.prepared])
def test_an_empty_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        prepare(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"nothing of {FAMILIES[name].title} was found: there is no {tmp_path}/")
    assert FAMILIES[name].download in message and "\n" not in message


def test_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown data set 'librispeach'; did you mean 'librispeech'"):
        prepare("librispeach", tmp_path)
    with pytest.raises(UsageError, match=r"there is no folder .*none; fetch "):
        prepare("meld", tmp_path / "none")
    with pytest.raises(UsageError, match="esc10 needs no preparation"):
        prepare("esc10", tmp_path)


def test_a_broken_transcript(tmp_path: Path) -> None:
    write(tmp_path / "dev-clean" / "1" / "2" / "1-2.trans.txt", "1-2-0 A\n1-2-1\n")
    with pytest.raises(UsageError, match=r"1-2\.trans\.txt, line 2: a name and a text must stand there"):
        prepare("librispeech", tmp_path)


def test_common_voice(tmp_path: Path) -> None:
    corpus = tmp_path / "cv-corpus-15.0-2023-09-08"
    head = "client_id\tpath\tsentence\tup_votes\n"
    write(corpus / "en" / "test.tsv", head + 'me\tcommon_voice_en_1.mp3\tHe said: "Go.\t2\n')
    write(corpus / "zh-CN" / "test.tsv", head + "ni\tcommon_voice_zh-CN_2.mp3\t你好。\t2\n")
    record(corpus / "en" / "clips" / "common_voice_en_1.mp3")
    record(corpus / "zh-CN" / "clips" / "common_voice_zh-CN_2.mp3")
    english, chinese = rows_of(prepare("common_voice_15", tmp_path))
    assert (english["gt"], english["speaker"], english["language"]) == ('He said: "Go.', "me", "en")  # no CSV quotes
    assert (chinese["source"], chinese["prompt"][-6:], chinese["language"]) == ("common_voice_15_zh", "<|zh|>", "zh")
    assert "duration" not in english


def test_a_table_without_its_column(tmp_path: Path) -> None:
    write(tmp_path / "fr" / "test.tsv", "path\tsentence\na.mp3\tOui\n")
    with pytest.raises(UsageError, match=r"fr/test\.tsv has no column 'client_id', only path, sentence"):
        prepare("common_voice_15", tmp_path)


def test_fleurs(tmp_path: Path) -> None:
    line = "7\t{}.wav\t你好，世界。\t你好世界\t你 | 好\t8000\tFEMALE\n"
    write(tmp_path / "cmn_hans_cn" / "test.tsv", line.format("11") + line.format("12"))
    for name in ("11", "12"):
        record(tmp_path / "cmn_hans_cn" / "audio" / "test" / f"{name}.wav")
    one, two = rows_of(prepare("fleurs_zh", tmp_path))
    assert (one["id"], two["id"], one["gt"], one["source"]) == ("11", "12", "你好世界", "fleurs_zh")


def test_aishell2(tmp_path: Path) -> None:
    for device, letter in (("iOS", "I"), ("Mic", "M")):
        place = tmp_path / "AISHELL-DEV-TEST-SET" / device / "test"
        write(place / "wav.scp", f"{letter}T1\twav/T0001/{letter}T1.wav\n")
        write(place / "trans.txt", f"{letter}T1\t打开 空调\n")
        record(place / "wav" / "T0001" / f"{letter}T1.wav")
    mic, ios = rows_of(prepare("aishell2", tmp_path))
    assert (mic["source"], ios["source"]) == ("aishell2_mic", "aishell2_ios")
    assert (ios["id"], ios["gt"], ios["speaker"]) == ("iOS-IT1", "打开 空调", "T0001")
    write(tmp_path / "AISHELL-DEV-TEST-SET" / "iOS" / "test" / "trans.txt", "IT1\t好\nIT2\t好\n")
    with pytest.raises(UsageError, match=r"iOS/test: 'IT2' stands in only one of wav\.scp and trans\.txt"):
        prepare("aishell2", tmp_path)
    for line in ("", "IT3"):
        write(tmp_path / "AISHELL-DEV-TEST-SET" / "iOS" / "test" / "trans.txt", f"IT1\t好\n{line}\nIT2\t好\n")
        with pytest.raises(UsageError, match=r"trans\.txt, line 2: a name and a value must stand there"):
            prepare("aishell2", tmp_path)


def test_covost2(tmp_path: Path) -> None:
    write(
        tmp_path / "en" / "covost_v2.en_zh-CN.tsv",
        "path\ttranslation\tsplit\na.mp3\t早上好。\ttest\nb.mp3\t不\ttrain\nc.mp3\t再见\ttest\n"
        "x.mp3\t好\ttest_covost\ny.mp3\t好\ttest_dup\ngone.mp3\t没\ttest\n",
    )
    write(
        tmp_path / "zh-CN" / "covost_v2.zh-CN_en.test.tsv",
        "path\tsentence\ttranslation\tclient_id\nd.mp3\t好\tGood.\tni\n",
    )
    for clip in ("en/clips/a.mp3", "en/clips/c.mp3", "zh-CN/clips/d.mp3"):
        record(tmp_path / clip)
    with pytest.raises(UsageError, match=r"1 of 4 recordings of CoVoST2 are missing, the first is .*gone\.mp3"):
        prepare("covost2", tmp_path)
    write(tmp_path / "en" / "validated.tsv", "client_id\tpath\tsentence\n1\ta.mp3\tGood.\n2\tc.mp3\tBye\n")
    said: list[str] = []
    first, second, third = rows_of(prepare("covost2", tmp_path, say=said.append))
    assert f"left out: there is no {tmp_path / 'en' / 'clips' / 'gone.mp3'}" in said
    assert (first["gt"], second["gt"], third["gt"]) == ("早上好。", "再见", "Good.")
    assert first["prompt"] == "Detect the language and translate the speech into Mandarin: <|en|>"
    assert (first["source"], first["language"], third["source"]) == ("covost_en_zh_test", "en", "covost_zh_en_test")
    assert (third["speaker"], third["language"]) == ("ni", "zh")


def test_meld(tmp_path: Path) -> None:
    write(
        tmp_path / "MELD.Raw" / "test_sent_emo.csv",
        "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season\n"
        '1,"Why, ""me""?",Mark,surprise,positive,0,0,3\n2,No,Rachel,neutral,neutral,0,1,3\n',
    )
    clips = tmp_path / "MELD.Raw" / "output_repeated_splits_test"
    record(clips / "dia0_utt0.mp4")
    record(clips / "dia0_utt1.mp4")
    record(clips / "dia0_utt1.wav", 0.25)
    one, two = rows_of(prepare("meld", tmp_path))
    assert (one["gt"], one["speaker"], one["more"]) == ("surprise", "Mark", {"text": 'Why, "me"?'})
    assert one["audio"].endswith("dia0_utt0.mp4") and two["audio"].endswith("dia0_utt1.wav")
    assert (two["duration"], two["source"]) == (0.25, "meld_test")


def test_vocalsound_by_its_list(tmp_path: Path) -> None:
    listed = [{"wav": "/data/sls/audio_16k/m1001_0_throatclearing.wav", "labels": "/m/01hsr_"}]
    write(tmp_path / "datafiles" / "te.json", json.dumps({"data": listed}))
    record(tmp_path / "audio_16k" / "m1001_0_throatclearing.wav")
    (row,) = rows_of(prepare("vocalsound", tmp_path))
    assert (row["gt"], row["speaker"], row["source"]) == ("Throat clearing", "m1001", "vocalsound_test")
    assert row["prompt"] == "Classify the human vocal sound to VocalSound in English:"


def test_vocalsound_by_its_speakers(tmp_path: Path) -> None:
    write(tmp_path / "meta" / "te_meta.csv", "f0003,female,20,English,US,yes\nm9,male,30,English,US,yes\n")
    for name in ("f0003_0_laughter", "f0003_0_sniff", "f00031_0_cough"):
        record(tmp_path / "audio_16k" / f"{name}.wav")
    assert [row["gt"] for row in rows_of(prepare("vocalsound", tmp_path))] == ["Laughter", "Sniff"]


def test_air_bench_chat(tmp_path: Path) -> None:
    item = {
        "path": "1.wav", "question": "Who speaks?", "answer_gt": "A man.", "task_name": "speech_dialogue_QA",
        "dataset_name": "fisher", "meta_info": "A man says hello.", "uniq_id": 3,
    }  # fmt: skip
    mixed = item | {"task_name": "speech_and_music_QA", "uniq_id": 4}
    write(tmp_path / "Chat" / "Chat_meta.json", json.dumps([item, mixed]))
    for folder in ("speech_dialogue_QA_fisher", "speech_and_music_QA_fisher"):
        record(tmp_path / "Chat" / folder / "1.wav")
    one, two = rows_of(prepare("air_bench_chat", tmp_path))
    assert (one["id"], one["prompt"], one["gt"], one["chat"]) == ("3", "Who speaks?", "A man.", True)
    assert (one["source"], two["source"]) == ("air_bench_chat_speech", "air_bench_chat_mixed")
    assert one["more"] == {
        "question": "Who speaks?", "task_name": "speech_dialogue_QA", "dataset_name": "fisher",
        "meta_info": "A man says hello.",
    }  # fmt: skip
    del item["meta_info"]
    write(tmp_path / "Chat" / "Chat_meta.json", json.dumps([item]))
    with pytest.raises(UsageError, match=r"Chat_meta\.json, item 1 has no 'meta_info'"):
        prepare("air_bench_chat", tmp_path)


def test_air_bench_foundation(tmp_path: Path) -> None:
    item = {
        "path": "1.wav", "question": "What?", "choice_a": "x", "choice_b": "y", "choice_c": "z", "answer_gt": "z",
        "task_name": "Audio_Grounding", "dataset_name": "AudioGrounding", "uniq_id": 1,
    }  # fmt: skip
    write(tmp_path / "Foundation_meta.json", json.dumps([item]))
    record(tmp_path / "Audio_Grounding_AudioGrounding" / "1.flac")
    (row,) = rows_of(prepare("air_bench_foundation", tmp_path))
    assert row["prompt"] == (
        "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
        "you may only choose A or B or C or D.\nWhat?\nA. x\nB. y\nC. z\nD. None"
    )
    assert (row["gt"], row["source"]) == ("C", "air_bench_foundation_Audio_Grounding_AudioGrounding")
    write(tmp_path / "Foundation_meta.json", json.dumps([item | {"answer_gt": "w"}]))
    with pytest.raises(UsageError, match="the answer of 1 is none of its choices: 'w'"):
        prepare("air_bench_foundation", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "key"), [("mmau", "mmau-test-mini.json", "audio_id"), ("mmar", "MMAR-meta.json", "audio_path")]
)
def test_mmau_and_mmar(tmp_path: Path, name: str, file: str, key: str) -> None:
    item = {
        "id": "q1", key: "./audio/q1.wav", "question": "Which animal?", "choices": ["Dog", "Cat"], "answer": "Cat",
        "task": "sound", "difficulty": "easy", "modality": "sound", "category": "Perception",
    }  # fmt: skip
    write(tmp_path / file, json.dumps([item]))
    record(tmp_path / "audio" / "q1.wav")
    (row,) = rows_of(prepare(name, tmp_path))
    assert (row["gt"], row["chat"], row["audio"]) == ("Cat", True, "audio/q1.wav")
    assert row["prompt"].split("\n") == ["Which animal?", "Choose the answer from these options:", "Dog", "Cat"]
    assert row["more"]["choices"] == ["Dog", "Cat"] and row["more"]["category"] == "Perception"


def test_voicebench(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    record(tmp_path / "one.wav")
    data = (tmp_path / "one.wav").read_bytes()
    rows = [{"prompt": "Say A or B.", "reference": "B", "audio": {"bytes": data, "path": "x.wav"}}]
    (tmp_path / "openbookqa").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "openbookqa" / "test-00000-of-00001.parquet")
    (row,) = rows_of(prepare("voicebench", tmp_path))
    assert (row["prompt"], row["gt"], row["source"]) == ("", "B", "voicebench_openbookqa")
    assert (tmp_path / row["audio"]).read_bytes() == data and row["duration"] == 0.5
    record(tmp_path / "one.wav", 0.75)
    newer = (tmp_path / "one.wav").read_bytes()
    rows[0]["audio"] = {"bytes": newer, "path": "x.wav"}
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "openbookqa" / "test-00000-of-00001.parquet")
    (row,) = rows_of(prepare("voicebench", tmp_path))
    assert (tmp_path / row["audio"]).read_bytes() == newer and row["duration"] == 0.75
    (tmp_path / "sd-qa").mkdir()
    for region in ("aus", "usa"):  # of eleven that ask the same
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "sd-qa" / f"{region}-00000-of-00001.parquet")
    spoken, _ = rows_of(prepare("voicebench", tmp_path))
    assert spoken["id"] == "sd-qa-usa-00000-of-00001-0"
