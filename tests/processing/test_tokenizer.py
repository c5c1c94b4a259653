"""Streamed text is whole characters that add up; damaged tokenizer folders are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen2_audio.errors import CheckpointError
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.tokenizer import Detokenizer, Tokenizer, load_tokenizer
from tests.tiny import AUDIO_ID, BASE_VOCAB, IM_END_ID, write_side_files


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@given(st.text(max_size=40))
@example("naïve café 你好，世界 👩‍👩‍👧‍👦🇨🇳 e\u0301 \u200d ﷽ 𝔘𝔫𝔦")
@example("🙂" * 20)
@example("�a�")
def test_pieces_add_up(processor: Processor, text: str) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special=True)
    assert "".join(pieces) == whole
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@given(st.text(max_size=40))
@example("a<|im_end|>é<|en|>\n")
def test_the_bytes_of_tokens_add_up_too(processor: Processor, text: str) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.bytes_of(token) for token in ids).decode() == tokenizer.decode(ids)


def test_ids_without_a_token_have_no_bytes(processor: Processor) -> None:
    assert processor.tokenizer.bytes_of(len(processor.tokenizer)) == b""


@given(st.text(max_size=40), st.integers(0, 300))
def test_fewer_merges_spell_the_same_text_in_shorter_pieces(processor: Processor, text: str, merges: int) -> None:
    whole, pieces = processor.tokenizer, processor.tokenizer.in_pieces(merges)
    assert pieces.decode(pieces.encode(text)) == whole.decode(whole.encode(text))
    assert len(pieces.encode(text)) >= len(whole.encode(text))
    assert set(pieces.encode(text)) <= set(range(len(whole)))


def test_without_merges_a_word_is_spelled_letter_by_letter(processor: Processor) -> None:
    spelled = processor.tokenizer.in_pieces(0)
    assert [spelled.decode([token]) for token in spelled.encode(" the")] == [" ", "t", "h", "e"]


@given(st.lists(st.integers(0, BASE_VOCAB + 7), max_size=60))
def test_any_ids_add_up(processor: Processor, ids: list[int]) -> None:
    """Bytes in any order, as a badly sampled answer may hold them, and special tokens in between."""
    pieces = stream(processor.tokenizer, ids)
    assert "".join(pieces) == processor.tokenizer.decode(ids, skip_special=True)


def test_characters_come_as_soon_as_they_are_whole(processor: Processor) -> None:
    ids = processor.tokenizer.encode("a🙂b")
    assert len(ids) == 6
    assert stream(processor.tokenizer, ids) == ["a", "", "", "", "🙂", "b", ""]


def test_unfinished_character_at_the_end(processor: Processor) -> None:
    ids = processor.tokenizer.encode("a🙂")
    assert stream(processor.tokenizer, ids[:-1])[-1] == "�"


def test_special_tokens_are_not_shown(processor: Processor) -> None:
    ids = [*processor.tokenizer.encode("hello"), IM_END_ID]
    assert "".join(stream(processor.tokenizer, ids)) == "hello"
    assert processor.tokenizer.decode(ids) == "hello<|im_end|>"


def test_decoding_effort_does_not_grow(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step decodes a few ids only, however long the answer."""
    seen = []
    decode = Tokenizer.decode

    def watched(self: Tokenizer, ids: Sequence[int], *, skip_special: bool = False) -> str:
        seen.append(len(ids))
        return decode(self, ids, skip_special=skip_special)

    monkeypatch.setattr(Tokenizer, "decode", watched)
    stream(processor.tokenizer, processor.tokenizer.encode("hello world 🙂 " * 60))
    assert max(seen) < 32


# folders


def test_added_tokens_come_from_tokenizer_config(tmp_path: Path) -> None:
    write_side_files(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<|AUDIO|>") == [AUDIO_ID]
    assert tokenizer.id_of("<|en|>") == len(tokenizer) - 2
    (tmp_path / "tokenizer_config.json").unlink()
    bare = load_tokenizer(tmp_path)
    assert len(bare.encode("<|AUDIO|>")) > 1
    with pytest.raises(CheckpointError, match=r"no token '<\|AUDIO\|>'"):
        bare.id_of("<|AUDIO|>")


def test_ids_that_would_shift(tmp_path: Path) -> None:
    write_side_files(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["added_tokens_decoder"][str(AUDIO_ID)]
    file.write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"'<\|audio_bos\|>' the id {AUDIO_ID + 1}, but it would become {AUDIO_ID};"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "half", "config"])
def test_damaged_folder(tmp_path: Path, damage: str) -> None:
    write_side_files(tmp_path)
    file = tmp_path / ("tokenizer_config.json" if damage == "config" else "tokenizer.json")
    text = file.read_text(encoding="utf-8")
    file.unlink()
    if damage != "missing":
        file.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer in .*; fetch the checkpoint again"):
        load_tokenizer(tmp_path)
