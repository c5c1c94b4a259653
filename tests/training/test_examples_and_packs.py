"""What is learnt: exactly the answers, never the first token, however the examples are packed."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.errors import AudioError, UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.chat_template import render
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.tokenizer import CONTROL_TOKENS, IM_END
from qwen2_audio.training import losses
from qwen2_audio.training.collate import pack, pack_by_tokens
from qwen2_audio.training.config import TrainConfig
from qwen2_audio.training.datasets import Example, Rows, _chat_pieces, build_example
from qwen2_audio.training.losses import hear, next_token_loss
from tests.tiny import AUDIO_ID, END_OF_TEXT_ID, sound, tiny_model

MESSAGES: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "audio", "audio_url": "a.wav"}, {"type": "text", "text": "What's that sound?"}],
    },
    {"role": "assistant", "content": "the sound of glass"},
    {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "audio", "audio_url": "b.wav"}]},
    {"role": "assistant", "content": "a dog, barked"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recordings."""
    folder = tmp_path_factory.mktemp("data")
    for name, seconds in (("a.wav", 0.5), ("b.wav", 1.1)):
        soundfile.write(folder / name, sound(seconds), 16000)
    return folder


def learnt_text(processor: Processor, example: Example) -> str:
    return processor.tokenizer.decode([t for t, learnt in zip(example.ids, example.learnt, strict=True) if learnt])


def test_conversation_learns_answers_and_their_ends(processor: Processor, data: Path) -> None:
    example = build_example({"messages": MESSAGES}, data, processor)
    assert learnt_text(processor, example) == "the sound of glass<|im_end|>a dog, barked<|im_end|>"
    assert [clip.frames for clip in example.clips] == [50, 110]
    assert example.ids.count(AUDIO_ID) == 12 + 27
    assert len(example.ids) == len(example.learnt)


def test_incomplete_answer_has_no_end(processor: Processor, data: Path) -> None:
    whole = build_example({"messages": MESSAGES}, data, processor)
    cut = build_example({"messages": MESSAGES, "complete": False}, data, processor)
    assert learnt_text(processor, cut) == "the sound of glass<|im_end|>a dog, barked"
    assert cut.ids == whole.ids[:-1]


def test_training_sees_what_inference_sees(processor: Processor, data: Path) -> None:
    """Up to the last answer, the ids are those of the prompt that would be answered."""
    example = build_example({"messages": MESSAGES}, data, processor)
    asked = Conversation.parse(MESSAGES[:1]).messages[0]
    path = str(data / "a.wav")
    prompt = processor.prepare(Conversation().user(path, asked.text))
    assert example.ids[: len(prompt.ids)] == prompt.ids
    assert example.learnt[len(prompt.ids)]
    assert not any(example.learnt[: len(prompt.ids)])


def test_pretraining_row(processor: Processor, data: Path) -> None:
    row = {"audio": "a.wav", "prompt": "recognize the speech: <|en|>", "gt": "the cat"}
    example = build_example(row, data, processor)
    assert learnt_text(processor, example) == "the cat<|endoftext|>"
    assert example.ids[-1] == END_OF_TEXT_ID
    assert example.ids == [
        *processor.prepare_base([data / "a.wav"], row["prompt"]).ids,
        *processor.tokenizer.encode("the cat<|endoftext|>"),
    ]


def test_a_stretch_of_a_recording(processor: Processor, data: Path) -> None:
    row = {"query": "<audio>What?", "response": "x", "audios": [{"path": "b.wav", "start": 0.2, "end": 0.7}]}
    assert build_example(row, data, processor).clips[0].frames == 50
    row["audios"] = [{"path": "b.wav", "start": 0.2, "end": 1.7}]
    with pytest.raises(AudioError, match=r"no stretch from 0\.2 to 1\.7 s in a recording of 1\.10 s"):
        build_example(row, data, processor)


def test_rows_are_never_cut(processor: Processor, data: Path, config: Qwen2AudioConfig) -> None:
    long = {"query": "<audio>" + "hello " * config.text.max_position_embeddings, "response": "x", "audio": "a.wav"}
    with pytest.raises(UsageError, match=r"the model's context holds \d+; split it"):
        build_example(long, data, processor)
    unknown = {"audio": "a.wav", "text": "hola", "task": "asr", "language": "es"}
    with pytest.raises(UsageError, match=r"no language tag <\|es\|>"):
        build_example(unknown, data, processor)


TEXTS = st.text(min_size=1, max_size=12).filter(lambda t: not any(c in t for c in CONTROL_TOKENS))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS, st.integers(0, 2)), min_size=1, max_size=5))
def test_pieces_joined_are_the_rendered_prompt(turns: list[tuple[str, str, int]]) -> None:
    messages = [
        {"role": role, "content": [{"type": "audio", "audio_url": "a.wav"}] * audios + [{"type": "text", "text": text}]}
        for role, text, audios in turns
    ]
    conversation = Conversation.parse(messages)
    learnt = [message.role == "assistant" for message in conversation.messages]
    pieces = _chat_pieces(conversation, learnt, complete=True)
    whole = render(conversation, generation_prompt=False)
    ends_with_answer = turns[-1][0] == "assistant"
    assert "".join(text for text, _ in pieces) == (whole.removesuffix("\n") if ends_with_answer else whole)
    answers = [text for text, learnt in pieces if learnt]
    assert len(answers) == sum(role == "assistant" for role, _, _ in turns)
    assert all(text.endswith(IM_END) for text in answers)


# files


def test_json_lines(processor: Processor, data: Path) -> None:
    strange = "the cat\u2028sat\x85here"  # line ends to str.splitlines, but not to JSON lines
    rows = [
        {"audio": "a.wav", "prompt": "hello:", "gt": strange},
        {
            "audio": "data:audio/wav;base64," + base64.b64encode((data / "a.wav").read_bytes()).decode(),
            "prompt": "",
            "gt": "x",
        },
        {"audio": str(data / "b.wav"), "prompt": "", "gt": "x"},
        {"messages": MESSAGES},
    ]
    file = data / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    dataset = Rows(str(file), processor, build_example)
    assert len(dataset) == 4
    assert learnt_text(processor, dataset[0]) == strange + "<|endoftext|>"
    assert [clip.frames for i in range(4) for clip in dataset[i].clips] == [50, 50, 110, 50, 110]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 1: "),
        ("[1]", "line 1: a row is a JSON object, got list"),
        ('{"text": "hello"}', "line 1: a row needs \"messages\" .*got the keys 'text'"),
        ('{"audio": "none.wav", "prompt": "", "gt": "x"}', "line 1: no such file"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "line 1: unknown role"),
        ('{"messages": []}', "line 1: the conversation is empty"),
        ('{"query": "x", "response": " "}', "line 1: the answer is empty"),
        ('{"audio": "none.wav", "prompt": "", "gt": " "}', "line 1: the answer is empty"),
        ('{"messages": [{"role": "user", "content": "<|im_end|>"}]}', "line 1: .*control token"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "line 1: the row holds nothing to learn"),
        ('{"audio": "none.wav", "prompt": null, "gt": "x"}', 'line 1: "prompt" must be a text'),
        ('{"audio": "none.wav", "prompt": "", "gt": "x <|im_end|> y"}', "line 1: the answer holds the control token"),
        ('{"audio": "none.wav", "prompt": "", "gt": "<|im_end|>x"}', "line 1: the answer holds the control token"),
        (
            '{"audio": "none.wav", "prompt": "", "gt": "x", "spoken": "<|im_end|>"}',
            'line 1: "spoken" holds the control',
        ),
    ],
)
def test_bad_rows(processor: Processor, tmp_path: Path, line: str, named: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line)
    with pytest.raises(UsageError, match=named):
        Rows(str(file), processor, build_example)[0]


@pytest.mark.parametrize("change", [None, np.random.default_rng(3)])
def test_a_recording_over_30_s_is_refused_however_it_would_be_changed(
    processor: Processor, tmp_path: Path, change: np.random.Generator | None
) -> None:
    soundfile.write(tmp_path / "a.wav", sound(31.0), 16_000)
    row = {"audio": "a.wav", "prompt": "Say it", "gt": "x"}
    for _ in range(4):
        with pytest.raises(AudioError, match="too long"):
            build_example(row, tmp_path, processor, change)


def test_what_is_said_in_all_forms(processor: Processor, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(0.5), 16_000)
    rows: list[dict[str, Any]] = [
        {"wav": "a.wav", "txt": "Hello there.", "lang": "en"},
        {"audio": "a.wav", "text": "The cat", "language": "en"},
        {"audio": "a.wav", "prompt": "Say it", "gt": "x", "spoken": "The dog?"},
        {"audio": "a.wav", "prompt": "Say it", "gt": "x"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert list(Rows(str(file), processor, build_example).said()) == ["hello there", "the cat", "the dog"]
    file.write_text(file.read_text() + "\n{")
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 5"):
        list(Rows(str(file), processor, build_example).said())


def test_unreadable_files(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "none.jsonl", tmp_path / "rows.jsonl"):
        with pytest.raises(UsageError, match="cannot read the training data"):
            Rows(str(path), processor, build_example)


# packs


def examples() -> st.SearchStrategy[list[Example]]:
    token = st.tuples(st.integers(0, 300), st.booleans())
    one = st.lists(token, min_size=1, max_size=12)
    return st.lists(one.map(lambda ts: Example([t for t, _ in ts], [m for _, m in ts], [])), min_size=1, max_size=5)


@given(examples())
def test_pack(group: list[Example]) -> None:
    """Each target is a learnt token that is not the first of its example, predicted from the one before it."""
    packed = pack(group)
    assert packed.lengths == [len(e.ids) for e in group]
    wanted, start = [], 0
    for example in group:
        wanted += [(start + i - 1, example.ids[i]) for i in range(1, len(example.ids)) if example.learnt[i]]
        start += len(example.ids)
    assert list(zip(packed.predict_at.tolist(), packed.targets.tolist(), strict=True)) == wanted
    starts = set(np.cumsum([0, *packed.lengths]).tolist())
    assert not {at + 1 for at in packed.predict_at.tolist()} & starts


@given(examples(), st.integers(1, 30))
def test_pack_by_tokens(group: list[Example], limit: int) -> None:
    groups = list(pack_by_tokens(group, limit, lambda e: len(e.ids)))
    assert [e for g in groups for e in g] == group
    assert all(len(g) == 1 or sum(len(e.ids) for e in g) <= limit for g in groups)
    for first, second in pairwise(groups):
        assert sum(len(e.ids) for e in first) + len(second[0].ids) > limit


def loss_of(model: Qwen2Audio, examples: list[Example]) -> torch.Tensor:
    batch = pack(examples)
    return next_token_loss(model, batch, hear(model, batch))


def test_loss_of_a_pack_is_the_sum(processor: Processor, model: Qwen2Audio, data: Path) -> None:
    rows = [{"messages": MESSAGES}, {"audio": "b.wav", "prompt": "hello:", "gt": "the cat"}, {"messages": MESSAGES[:2]}]
    several = [build_example(row, data, processor) for row in rows]
    with torch.inference_mode():
        together = loss_of(model, several)
        alone = torch.stack([loss_of(model, [example]) for example in several]).sum()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_the_head_in_chunks_is_the_head(processor: Processor, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().requires_grad_(True)
    batch = pack([build_example({"messages": MESSAGES}, data, processor)] * 2)
    whole = next_token_loss(model, batch, hear(model, batch))
    expected = torch.autograd.grad(whole, list(model.language_model.parameters()))
    monkeypatch.setattr(losses, "HEAD_CHUNK", 7)
    chunked = next_token_loss(model, batch, hear(model, batch))
    torch.testing.assert_close(chunked, whole)
    for a, b in zip(torch.autograd.grad(chunked, list(model.language_model.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_loss_without_recordings_or_targets(model: Qwen2Audio) -> None:
    assert loss_of(model, [Example([1, 2, 3], [False, True, True], [])]) > 0
    assert loss_of(model, [Example([1, 2], [True, False], [])]) == 0


def test_settings_of_the_wrong_type() -> None:
    with pytest.raises(UsageError, match=r"write 1.0e-3"):
        TrainConfig(model="a", data="b", out="c", warmup="1e-3")  # type: ignore[arg-type]
