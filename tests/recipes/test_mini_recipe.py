"""The recipe behind mini: its scoring, its noise, and rows that the trainer reads."""

from __future__ import annotations

import gzip
import json
import random
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio import load
from qwen2_audio.evaluation.task import load_samples
from qwen2_audio.evaluation.tasks import find_task
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.augment import augment
from qwen2_audio.training.datasets import build_example
from tests.tiny import VOCAB, sound, tiny_model

RECIPE = Path(__file__).parents[2] / "recipes" / "mini"


@pytest.fixture(scope="module", autouse=True)
def _importable() -> object:
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


def recipe(name: str) -> ModuleType:
    return __import__(name)


def test_word_errors() -> None:
    measure = recipe("measure")
    words = measure.words
    assert words("It's FIVE o'clock -- now!") == ["it's", "five", "o'clock", "now"]
    cases = [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b c", "x b c d", 2), ("", "a b", 2), ("a b", "", 2)]
    for reference, heard, errors in cases:
        assert measure.edits(words(reference), words(heard)) == errors
    assert measure.word_f1("Paris is the capital", "the capital is Paris") == 1
    assert measure.word_f1("Paris", "Rome") == 0


@given(a=st.lists(st.sampled_from("abc"), max_size=8), b=st.lists(st.sampled_from("abc"), max_size=8))
def test_word_errors_equal_the_textbook(a: list[str], b: list[str]) -> None:
    table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    assert recipe("measure").edits(a, b) == table[-1][-1]


@given(seed=st.integers(0, 2**31))
def test_augmented_speech_is_sound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    out = augment(sound(1.0), rng)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert 0.01 < np.abs(out).max() <= 1
    assert 0.7 < len(out) / 16_000 < 2.5


def test_sentences() -> None:
    assert recipe("reading_texts").sentence_case("AND THEN I SAW IT".split()) == "And then I saw it."


def test_sentences_for_other_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{number}\tSENTENCE NUMBER {number} IS READ\n" for number in range(20))
    (tmp_path / "texts.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    voices = ["af_one", "am_two", "bf_three", "zm_four", "zf_five"]
    for voice in voices:
        (tmp_path / f"{voice}.bin").touch()
    monkeypatch.setattr(recipe("voices"), "KOKORO", tmp_path)

    def made(*options: str) -> list[dict[str, str]]:
        out = tmp_path / "out.jsonl"
        monkeypatch.setattr(sys, "argv", ["reading_texts.py", str(tmp_path / "texts.tsv.gz"), str(out), *options])
        recipe("reading_texts").main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    first, rest = made("--count", "15"), made("--skip", "15", "--kokoro")
    assert len(first) == 15 and len(rest) == 5 and not {row["id"] for row in first} & {row["id"] for row in rest}
    assert all("voice" not in row for row in first)
    for row in rest:
        kind, pair, share = row["voice"].split(":")
        one, other = pair.split("+")
        assert kind == "kokoro" and 0 <= float(share) <= 0.6
        assert one[0] in "ab" and one[1] == other[1] and {one, other} <= set(voices)
    with pytest.raises(SystemExit):
        made("--skip", "20")


def test_questions_have_no_holes_and_the_test_is_kept_back(tmp_path: Path) -> None:
    questions = recipe("question_texts").from_templates(3000, random.Random(0))
    assert not any("{" in question for question in questions)
    kept = (RECIPE / "test_questions.txt").read_text().split("\n")[:50]
    assert len(set(kept)) == 50
    row = {"id": "x", "text": kept[0], "answer": "Rome.", "complete": True, "audio": "audio/x.flac"}
    make_folder(tmp_path / "ask", [row])
    assert make_rows(tmp_path)["sft"] == []


def test_answers_of_a_batch_are_those_of_each_alone() -> None:
    complete = recipe("question_texts").complete
    model, draw = tiny_model(), random.Random(0)
    prompts = [[draw.randrange(VOCAB) for _ in range(length)] for length in (3, 7, 2, 5)]
    with torch.inference_mode():
        free = [complete(model, [prompt], 12, set(), 0)[0] for prompt in prompts]
        stop = {free[1][4], free[3][2]}  # rows end at unlike times
        together = complete(model, prompts, 12, stop, 0)
    for alone, row in zip(free, together, strict=True):
        ends = [place for place, token in enumerate(alone) if token in stop]
        assert row == alone[: ends[0] + 1 if ends else None]
    assert len({len(row) for row in together}) > 1


def make_folder(folder: Path, rows: list[dict[str, object]]) -> None:
    """A folder of recordings as the recipe has them."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for row in rows:
        soundfile.write(folder / str(row["audio"]), sound(0.3), 16_000)
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


STAGES = ("hear", "pretrain", "sft", "mix")


def make_rows(folder: Path) -> dict[str, list[str]]:
    """The lines of each stage's file, made from whatever folders are there."""
    sources = [
        word for name in ("read", "many", "ask", "real", "prompts") for word in (f"--{name}", str(folder / name))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["conversations.py", str(folder / "rows"), *sources, "--data", str(folder)])
        recipe("conversations").main()
    return {name: (folder / "rows" / f"{name}.jsonl").read_text().splitlines() for name in STAGES}


def test_rows_are_what_the_trainer_reads(tmp_path: Path, processor: Processor) -> None:
    def of(name: str, **more: object) -> list[dict[str, object]]:
        return [
            {"id": str(i), "text": f"hello {i}", "audio": f"audio/{i}.flac", "duration": 0.3, **more} for i in range(9)
        ]

    make_folder(tmp_path / "read", of("read"))
    make_folder(tmp_path / "many", of("many"))
    make_folder(tmp_path / "real", of("real"))
    make_folder(tmp_path / "ask", of("ask", answer="Rome.", complete=True))
    make_folder(
        tmp_path / "librispeech_excerpt", of("whole", gt="HELLO", split="train") + of("test", gt="SECRET", split="test")
    )
    kinds = ["rain", "rooster", "chainsaw", "helicopter"]
    sounds = [{**row, "gt": kinds[i % 4], "fold": 1 + i % 4} for i, row in enumerate(of("esc"))]
    make_folder(tmp_path / "esc10", sounds)
    voices = [{**row, "gt": "joy", "speaker": ["08", "09", "12"][i % 3]} for i, row in enumerate(of("emodb"))]
    make_folder(tmp_path / "emodb", voices)
    made = make_rows(tmp_path)
    assert len(made["hear"]) == 9 + 9 + 9 + 9 and len(made["sft"]) > 30
    for line in (line for lines in made.values() for line in lines):
        assert "secret" not in line.lower()
        example = build_example(json.loads(line), tmp_path / "rows", processor)
        assert any(example.learnt)
        assert example.ids.count(processor.audio_token_id) == sum(clip.tokens for clip in example.clips)
    labels = [json.loads(line) for line in made["pretrain"] if "esc10" in line]
    assert {row["gt"] for row in labels} == {"rain", "rooster", "chainsaw"}  # the fourth fold is held out
    assert sum("emodb" in line for line in made["pretrain"]) == 3 * 3  # of nine, six are of held-out speakers
    mixed = "".join(made["mix"])
    assert [mixed.count(f"../{name}/") for name in ("many", "read", "real", "ask", "librispeech_excerpt")] == [9] * 5
    assert mixed.count("../emodb/") == 11 * 3 and mixed.count("../esc10/") == 5 * 7


def test_digits(tmp_path: Path, processor: Processor) -> None:
    rows = [{"id": str(i), "audio": f"audio/{i}.flac", "prompt": "Say it:", "gt": "four"} for i in range(5)]
    make_folder(tmp_path / "fsdd", [{**row, "split": "test" if row["id"] == "3" else "train"} for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rows.py", str(tmp_path / "fsdd"), str(tmp_path / "out")])
        runpy.run_path(str(RECIPE.parent / "digits" / "rows.py"), run_name="__main__")
    for split, ids in (("train", ["0", "1", "2", "4"]), ("test", ["3"])):
        lines = (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ids
        assert all(len(build_example(json.loads(line), tmp_path, processor).clips) == 1 for line in lines)


def test_preferences() -> None:
    preferences = recipe("preferences")
    rng = random.Random(0)
    for kind in preferences.THINGS:
        for question in preferences.questions(kind, rng, each=5):
            assert not question.contradicted_by(question.right), question
            assert question.contradicted_by(question.wrong), question
    loud = np.concatenate([np.zeros(16_000), np.ones(40_000), np.zeros(16_000)]).astype(np.float32)
    assert preferences.loudest(loud) == (1.0, 3.5)
    assert preferences.loudest(loud[:8000]) == (0.0, 0.5)


def test_spoken_questions_are_what_the_scorecard_asks(tmp_path: Path, folder: Path) -> None:
    questions = recipe("spoken_questions")
    spoken: list[tuple[str, str]] = []

    def speak(voice: str, text: str) -> object:
        spoken.append((voice, text))
        return sound(0.3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "speak", speak)
        patch.setattr(questions, "ANSWER_TOKENS", 3)
        patch.setattr(sys, "argv", ["spoken_questions.py", str(tmp_path), "--model", str(folder)])
        questions.main()
    assert {voice for voice, _ in spoken} == {"flite:rms"}
    samples = load_samples(find_task("spoken_questions"), tmp_path)
    assert len({sample.id for sample in samples}) == 50
    for sample, (_, text) in zip(samples, spoken, strict=True):
        assert (sample.chat, sample.prompt, sample.duration) == (True, "", 0.3)
        assert soundfile.info(sample.audio[0]).frames == 4800
        assert text not in sample.gt
    written = load(folder).chat(spoken[7][1], temperature=0.0, max_new_tokens=3)
    assert samples[7].gt == written.text


def test_words_on_the_best_path() -> None:
    """Two tokens, each clear in its own frames, with silence around them."""
    scores = np.full((8, 2), -1.0, dtype=np.float32)
    scores[2:4, 0], scores[6, 1] = 1.0, 1.0
    assert recipe("cut_real").word_times(scores, 0.0) == [(2, 3), (6, 6)]


def test_the_average_lies_between(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    first = {"x.lora_A": torch.randn(2, 5, generator=generator), "x.lora_B": torch.randn(4, 2, generator=generator)}
    first["y.weight"] = torch.zeros(3)
    save_file(first, tmp_path / "first.safetensors", metadata={"lora_scale": "2.0", "base_sample": "{}"})
    grown = {"x.lora_A": torch.cat([first["x.lora_A"], torch.ones(1, 5)]), "y.weight": torch.ones(3)}
    grown["x.lora_B"] = torch.cat([2 * first["x.lora_B"], torch.ones(4, 1)], dim=1)
    save_file(grown, tmp_path / "second.safetensors", metadata={"lora_scale": "1.0"})
    with pytest.MonkeyPatch.context() as patch:
        names = [str(tmp_path / f"{name}.safetensors") for name in ("first", "second", "out")]
        patch.setattr(sys, "argv", ["average.py", *names, "--share", "0.25"])
        recipe("average").main()
    out = {name: tensor.float() for name, tensor in load_file(tmp_path / "out.safetensors").items()}
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert file.metadata() == {"lora_scale": "1.0", "base_sample": "{}"}
    before = 2 * first["x.lora_B"] @ first["x.lora_A"]
    torch.testing.assert_close(out["x.lora_B"] @ out["x.lora_A"], before + 0.25, atol=1e-2, rtol=1e-2)
    assert out["y.weight"].tolist() == [0.25] * 3


def test_a_share_of_what_another_run_changed() -> None:
    average = recipe("average").average
    start, first, second = ({"y.weight": torch.tensor([float(value)])} for value in (1, 5, 3))
    assert average(first, second, 0.5, start)["y.weight"].tolist() == [6.0]
    assert average(first, second, 0.5)["y.weight"].tolist() == [4.0]


def test_where_only_one_run_learnt_the_other_changed_nothing(tmp_path: Path) -> None:
    average = recipe("average").average
    some, more = {"x.lora_A": torch.ones(2, 3), "x.lora_B": torch.ones(4, 2)}, {"y.weight": torch.ones(1)}
    for first, second in ((some | more, more), (more, some | more)):
        out = average(first, second, 0.25)
        share = 0.75 if "x.lora_B" in first else 0.25
        torch.testing.assert_close(out["x.lora_B"] @ out["x.lora_A"], share * torch.full((4, 3), 2.0).half())
    with pytest.raises(SystemExit, match=r"only one of the files holds y\.weight"):
        average(some, some | more, 0.5)


def test_an_encoder_goes_back_towards_its_beginning() -> None:
    names = ["audio_tower.layers.0.fc1.lora_A", "audio_tower.layers.0.fc1.lora_B", "language_model.x.lora_B"]
    kept = recipe("average").keep_of_encoder({name: torch.ones(2) for name in names}, 0.25)
    assert {name: float(kept[name][0]) for name in names} == dict(zip(names, [1.0, 0.25, 1.0], strict=True))


def test_an_encoders_first_layers_go_back_altogether() -> None:
    names = [f"audio_tower.layers.{number}.fc1.lora_B" for number in (0, 1, 2, 10)]
    names.append("language_model.model.layers.0.x.lora_B")
    kept = recipe("average").without_first_layers({name: torch.ones(2) for name in names}, 2)
    assert list(kept) == names[2:]
