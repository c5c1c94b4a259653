"""The tokenizer of a checkpoint folder, and an incremental detokenizer for streaming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from qwen2_audio.errors import CheckpointError

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
CONTROL_TOKENS = (IM_START, IM_END, END_OF_TEXT, AUDIO, AUDIO_BOS, AUDIO_EOS)
"""Tokens that give a prompt its structure; they have no place in the text of a message."""


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written out in it become one id each. Nothing is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that do not (yet) form a character come out as U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def bytes_of(self, token: int) -> bytes:
        """What one id stands for, which may be a part of a character; b"" for ids that have no token."""
        text = self._backend.id_to_token(token)
        if text is None:
            return b""
        if token in self._added:
            return text.encode()
        return bytes(_byte_letters()[letter] for letter in text)

    @cached_property
    def _added(self) -> Set[int]:
        return self._backend.get_added_tokens_decoder().keys()

    def to_json(self) -> str:
        """All of it as the contents of a `tokenizer.json`, added tokens included."""
        return self._backend.to_str()

    def id_of(self, token: str) -> int:
        """The id of one token, which must exist."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise CheckpointError(
                f"the tokenizer has no token {token!r}; is this a Qwen2-Audio checkpoint, wholly downloaded?"
            )
        return found

    def in_pieces(self, merges: int) -> Tokenizer:
        """The same tokens, but text is put together by the first `merges` rules of the byte-pair encoding alone: rare words
        fall into frequent pieces.

        Raises:
            CheckpointError: the tokenizer is no byte-pair encoding.
        """
        description = json.loads(self.to_json())
        if "merges" not in description["model"]:
            raise CheckpointError(
                f"the tokenizer is {description['model'].get('type')}, which has no merges to leave out"
            )
        description["model"]["merges"] = description["model"]["merges"][:merges]
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(description)))

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`, and add what `tokenizer_config.json` lists in `added_tokens_decoder` beyond it.

    The published checkpoints keep the audio tokens, language tags and time stamps only there.

    Raises:
        CheckpointError: a file is missing or damaged, or an added token would get another id than the file says.
    """
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        config_file = folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
        entries = config.get("added_tokens_decoder") or {}
        listed = {int(index): _added_token(entry) for index, entry in entries.items()}
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"cannot read the tokenizer in {folder} ({reason}); fetch the checkpoint again"
        ) from error
    in_order = [token for _, token in sorted(listed.items(), key=lambda item: item[0])]
    for special, run in groupby(in_order, key=lambda token: token.special):  # one by one would take seconds
        add = backend.add_special_tokens if special else backend.add_tokens
        add(list(run))
    for index, token in listed.items():
        got = backend.token_to_id(token.content)
        if got != index:
            raise CheckpointError(
                f"tokenizer_config.json in {folder} gives {token.content!r} the id {index}, but it would become {got}; "
                "the folder mixes files of different models, fetch it again"
            )
    return Tokenizer(backend)


@cache
def _byte_letters() -> Mapping[str, int]:
    """The bytes that the letters of a byte-level vocabulary stand for: printable ones stand for themselves, the letters from
    U+0100 on for the others in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    flags = {name: entry[name] for name in ("lstrip", "rstrip", "normalized", "single_word") if name in entry}
    return AddedToken(entry["content"], special=bool(entry.get("special")), **flags)


class Detokenizer:
    """Text of a growing list of ids, piece by piece; never half a character."""

    _LOOK_BACK = 6

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # ids whose text has been given out
        self._context = 0  # where decoding starts, a few ids earlier: a piece may depend on its neighbours

    def push(self, token: int) -> str:
        """Add one id; returns the text that is now certain (often "")."""
        self._ids.append(token)
        return self._emit(final=False)

    def finish(self) -> str:
        """The rest, incomplete bytes as U+FFFD."""
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown], skip_special=True)
        now = self._tokenizer.decode(self._ids[self._context :], skip_special=True)
        if not final and now.endswith("�"):
            return ""
        self._context = max(self._context, self._shown - self._LOOK_BACK) if self._whole_at_shown() else self._context
        self._shown = len(self._ids)
        return now[len(before) :]

    def _whole_at_shown(self) -> bool:
        start = max(self._context, self._shown - self._LOOK_BACK)
        return not self._tokenizer.decode(self._ids[start:], skip_special=True).startswith("�")
