"""Prompt text and token ids equal those of `transformers`' processor and chat template."""

from __future__ import annotations

import base64
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from qwen2_audio.processing.chat_template import render
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, Part, TextPart
from qwen2_audio.processing.mel import Clip
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.tokenizer import CONTROL_TOKENS, load_tokenizer
from tests.tiny import AUDIO_TOKENS, CHAT_TOKENS, qwen2_tokenizer, sound_of, tiny_config

TEXTS = st.text(max_size=30).filter(lambda text: not any(token in text for token in CONTROL_TOKENS))
PARTS = st.one_of(TEXTS.map(TextPart), st.just(AudioPart("clip.wav")))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """A system message or none, then user and assistant messages in any order with any parts."""
    messages = []
    if draw(st.booleans()):
        messages.append(Message("system", (TextPart(draw(TEXTS)),)))
    roles = draw(st.lists(st.sampled_from(("user", "assistant")), min_size=1, max_size=6))
    for role in roles:
        parts: tuple[Part, ...] = tuple(draw(st.lists(PARTS, min_size=1, max_size=4)))
        if all(part == TextPart("") for part in parts):  # of a user this is refused
            parts = (*parts, TextPart("Hello"))
        messages.append(Message(role, parts))
    return Conversation(tuple(messages))


def as_dicts(conversation: Conversation, *, plain: bool) -> list[dict[str, Any]]:
    """The original's form; with `plain`, lone texts as a bare string."""
    out = []
    for message in conversation.messages:
        content: Any = [
            {"type": "text", "text": p.text} if isinstance(p, TextPart) else {"type": "audio", "audio_url": p.source}
            for p in message.parts
        ]
        if plain and len(content) == 1 and "text" in content[0]:
            content = content[0]["text"]
        out.append({"role": message.role, "content": content})
    return out


@given(conversations(), st.booleans(), st.booleans())
def test_chat_template(pair: Any, conversation: Conversation, generation_prompt: bool, plain: bool) -> None:
    dicts = as_dicts(conversation, plain=plain)
    theirs = pair.their_processor.apply_chat_template(dicts, add_generation_prompt=generation_prompt, tokenize=False)
    assert render(conversation, generation_prompt=generation_prompt) == theirs
    assert render(Conversation.parse(dicts), generation_prompt=generation_prompt) == theirs


@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from(CHAT_TOKENS + AUDIO_TOKENS)), max_size=6).map("".join))
def test_tokenizer(pair: Any, text: str) -> None:
    """Special tokens only listed in tokenizer_config.json are one id; all else is split alike."""
    ids = pair.their_processor.tokenizer(text, add_special_tokens=False).input_ids
    assert pair.processor.tokenizer.encode(text) == ids
    assert pair.processor.tokenizer.decode(ids) == pair.their_processor.tokenizer.decode(ids)
    theirs = pair.their_processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert pair.processor.tokenizer.decode(ids, skip_special=True) == theirs


@pytest.mark.parametrize("lengths", [[16_000], [1_000, 48_123], [321, 480_000, 12_345]])
def test_ids(pair: Any, lengths: list[int]) -> None:
    clips = [(sound_of(n, n), 16000) for n in lengths]
    conversation = Conversation().user(*clips, "What's that sound?")
    conversation = conversation.assistant("hello world").user(clips[0], "你好 <|en|>")
    inputs = pair.their_inputs([conversation])
    prompt = pair.processor.prepare(conversation)
    assert prompt.ids == inputs["input_ids"][0].tolist()
    assert [clip.frames for clip in prompt.clips] == inputs["feature_attention_mask"].sum(-1).tolist()


def test_ids_of_base_prompt(pair: Any) -> None:
    wave = sound_of(54_321)
    instruction = "Detect the language and recognize the speech: <|en|>"
    prompt = pair.processor.prepare_base([(wave, 16000)], instruction)
    assert prompt.text == f"<|audio_bos|><|AUDIO|><|audio_eos|>{instruction}"
    theirs = pair.their_processor(text=prompt.text, audio=wave, sampling_rate=16000, return_tensors="pt")
    assert prompt.ids == theirs["input_ids"][0].tolist()


GOLDEN = [
    *(
        151644,
        8948,
        198,
        2610,
        525,
        264,
        10950,
        17847,
        13,
        151645,
        198,
        151644,
        872,
        198,
        14755,
        220,
        16,
        25,
        220,
        151647,
    ),
    *[151646] * 101,
    *(151648, 198, 3838, 594, 429, 5112, 30, 151645, 198, 151644, 77091, 198),
]


def _ranks() -> Path | None:
    spec = importlib.util.find_spec("dashscope")
    file = (
        Path(spec.submodule_search_locations[0]) / "resources/qwen.tiktoken"
        if spec and spec.submodule_search_locations
        else None
    )
    return file if file and file.exists() else None


@pytest.mark.skipif(_ranks() is None, reason="the real ranks (qwen.tiktoken of PyPI's dashscope) are not installed")
def test_golden_ids(tmp_path: Path) -> None:
    """The ids that `transformers`' own tests expect of the published tokenizer, for a clip of 101 audio tokens."""
    file = _ranks()
    assert file is not None
    tokenizer_from_ranks(file, tmp_path)
    processor = Processor(load_tokenizer(tmp_path), tiny_config().with_vocab(156_032))
    processor.audio_token_id = 151_646
    conversation = Conversation().user(AudioPart("glass.wav"), TextPart("What's that sound?"))
    clip = Clip(torch.zeros(128, 406), 404)
    assert clip.tokens == 101
    assert processor.encode(render(conversation), [clip]) == GOLDEN


def tokenizer_from_ranks(file: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as published, from base64 ranks."""
    letters = _byte_letters()
    tokens = [base64.b64decode(line.split()[0]) for line in file.read_text().splitlines() if line]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    words = {"".join(letters[b] for b in token): rank for token, rank in ranks.items()}
    merges = []
    for rank, token in enumerate(tokens):
        if len(token) > 1:
            left, right = _merged_last(token, ranks, rank)
            merges.append(("".join(letters[b] for b in left), "".join(letters[b] for b in right)))
    tokenizer = qwen2_tokenizer(models.BPE(vocab=words, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    listed = {str(151_643 + i): {"content": t, "special": True} for i, t in enumerate(CHAT_TOKENS + AUDIO_TOKENS[:3])}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def _merged_last(token: bytes, ranks: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """The two parts that byte-pair encoding with the ranks below `limit` leaves of a token."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[best] < limit
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]
