"""Requests that no honest client sends, made up from a seed: for `fuzz_server.py`."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from fuzz_values import EVENTS, HEADERS, HOSTILE, KINDS, NUMBERS, OTHERS, PATHS, URLS


@dataclass(frozen=True, slots=True)
class Case:
    """A request: `kind` names the way it was made, for the summary."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)


class Cases:
    """Case number `n` depends on the seed and on n alone, so that one can be made again."""

    def __init__(self, seed: int, model: str) -> None:
        self._seed, self._model = seed, model
        self._clips = [_clip(kind, subtype) for kind, subtype in KINDS]
        self._ways: tuple[Callable[[random.Random], Case], ...] = (
            *(self._json_tree, self._json_tree, self._json_bytes, self._base64, self._sound, self._sound, self._sound),
            *(self._url, self._form, self._elsewhere, self._deep),
        )

    def __getitem__(self, number: int) -> Case:
        chance = random.Random(f"{self._seed}:{number}")
        return self._ways[number % len(self._ways)](chance)

    def events(self, number: int) -> list[str | bytes]:
        """What a WebSocket sends."""
        chance = random.Random(f"{self._seed}:socket:{number}")
        sent: list[str | bytes] = []
        for _ in range(chance.randrange(1, 8)):
            event: dict[str, Any] = {
                "type": chance.choice(EVENTS),
                "audio": chance.choice((_text(b"\x01\x02" * 800), "@@", "A")),
            }
            event |= {"session": {"turn_detection": chance.choice(HOSTILE)}, "item": chance.choice(HOSTILE)}
            if chance.random() < 0.5:
                _spoil(event, chance)
            text = _json(event)
            sent.append(
                chance.choice(
                    (text, text, text[: len(text) // 2], text.encode("utf-8", "replace"), chance.randbytes(200))
                )
            )
        return sent

    def good(self) -> Case:
        """A request that has an answer."""
        body = {**self._chat(self._clips[0], "wav"), "temperature": 0}
        return Case("good", "POST", PATHS[0], json.dumps(body).encode())

    def _chat(self, clip: bytes, label: str) -> dict[str, Any]:
        part = {"type": "input_audio", "input_audio": {"data": _text(clip), "format": label}}
        content = [part, {"type": "text", "text": "What is said?"}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        return {"model": self._model, "messages": messages, "max_tokens": 2, "stream": False}

    def _full(self) -> dict[str, Any]:
        """With every field, so that each can be spoiled."""
        numbers = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.0,
            "seed": 1,
            "n": 1,
            "presence_penalty": 0.1,
        }
        rest = {"frequency_penalty": 0.1, "stop": ["."], "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}}
        form = {"response_format": {"type": "text"}, "stream_options": {"include_usage": True}, "user": "u"}
        body = self._chat(self._clips[0], "wav") | numbers | rest | form
        return body | {
            "stream": True,
            "messages": [*body["messages"], {"role": "assistant", "content": "It"}, body["messages"][1]],
        }

    def _json_tree(self, chance: random.Random) -> Case:
        body = self._full()
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            _spoil(body, chance)
        path = chance.choice((PATHS[0], PATHS[0], PATHS[1], PATHS[2]))
        if path == PATHS[1]:
            body["prompt"] = chance.choice(("<|en|>", ["a", "b"], *HOSTILE))
        return Case("mutated JSON", "POST", path, _json(body).encode("utf-8", "surrogatepass"))

    def _json_bytes(self, chance: random.Random) -> Case:
        body = _json(self._full())
        number = chance.choice(NUMBERS)
        texts = (
            body[: chance.randrange(len(body))].encode(),
            chance.randbytes(chance.randrange(1, 3000)),
            body.replace("0.5", number, 1).encode(),
            body.replace('"max_tokens": 2', f'"max_tokens": {number}', 1).encode(),
            body.replace("Be brief.", "\\ud800", 1).encode(),
            body.encode().replace(b"Be brief.", b"\xff\xfe\xc0\x80", 1),
            b"\xef\xbb\xbf" + body.encode(),
            body.encode(chance.choice(("utf-16", "utf-32"))),
            body.replace('"stream": true', '"stream": true, "stream": false', 1).encode(),
            b"",
            b"null",
            body.replace("true", "True", 1).encode(),
            body.encode() + body.encode(),
        )
        return Case("broken JSON", "POST", chance.choice(PATHS[:3]), chance.choice(texts))

    def _deep(self, chance: random.Random) -> Case:
        depth = chance.choice((40, 500, 5000, 100_000))
        nest = chance.choice(
            ("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth, '{"a":' * depth + "1" + "}" * depth)
        )
        body = _json(self._chat(self._clips[0], "wav"))
        schema = '{"type": "json_schema", "json_schema": {"name": "a", "schema": ' + nest + "}}"
        where = (nest, body.replace('"Be brief."', nest, 1), body[:-1] + f', "response_format": {schema}}}')
        return Case("deep nesting", "POST", chance.choice(PATHS[:3]), chance.choice(where).encode())

    def _base64(self, chance: random.Random) -> Case:
        text = _text(chance.choice(self._clips))
        at = chance.randrange(len(text))
        bad = chance.choice(("\n", "=", "-", "é", " ", "\x00", "====", "data:audio/wav;base64,", "%"))
        spoiled = chance.choice((text[:at] + bad + text[at:], text[:at], bad + text, text + bad, text[at:], bad * 1000))
        body = self._chat(b"", chance.choice(("wav", "mp3", "flac", "", "xyz", "WAV", "a" * 1000)))
        body["messages"][1]["content"][0]["input_audio"]["data"] = spoiled
        return Case("broken base64", "POST", PATHS[0], json.dumps(body).encode())

    def _sound(self, chance: random.Random) -> Case:
        body = self._chat(_broken(chance.choice(self._clips), chance), chance.choice(("wav", "mp3", "flac", "ogg")))
        if chance.random() < 0.8:
            del body["messages"][1]["content"][0]["input_audio"]["format"]
            part = body["messages"][1]["content"][0]["input_audio"]
            body["messages"][1]["content"][0] = {
                "type": "audio_url",
                "audio_url": {"url": "data:audio/x;base64," + part["data"]},
            }
        return Case("broken clip", "POST", PATHS[0], json.dumps(body).encode())

    def _url(self, chance: random.Random) -> Case:
        url = chance.choice(URLS) + chance.choice(("", "", "x" * 10, "?a=b", "#"))
        parts: list[Any] = [{"type": "audio_url", "audio_url": {"url": url}}] * chance.choice((1, 1, 2, 1000))
        body = {"model": self._model, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
        if chance.random() < 0.1:
            body["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 5000
        return Case("addresses", "POST", PATHS[0], json.dumps(body).encode())

    def _form(self, chance: random.Random) -> Case:
        clip = chance.choice(self._clips)
        clip = clip if chance.random() < 0.2 else _broken(clip, chance)
        fields = {"model": self._model, "response_format": "json", "language": "en", "temperature": "0", "prompt": ""}
        name = chance.choice((*fields, "timestamp_granularities[]", "stream", "unknown"))
        fields[name] = str(chance.choice((*HOSTILE, *NUMBERS, "srt", "vtt", "verbose_json", "text")))[:5000]
        lines = [
            f'--B\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
        ]
        head = '--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body = "".join(lines).encode("utf-8", "replace") + head.encode() + clip + b"\r\n--B--\r\n"
        at = chance.randrange(len(body))
        body = chance.choice(
            (body, body, body, body[:at], body[:at] + chance.randbytes(9) + body[at:], body.replace(b"--B--", b""))
        )
        kind = chance.choice(
            ("multipart/form-data; boundary=B",) * 5 + ("multipart/form-data", "multipart/form-data; boundary=C")
        )
        return Case("forms", "POST", chance.choice(PATHS[3:]), body, (("content-type", kind),))

    def _elsewhere(self, chance: random.Random) -> Case:
        method = chance.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"))
        header = chance.choice(HEADERS)
        body = chance.choice((b"", b"{}", chance.randbytes(100), json.dumps(self._chat(b"", "wav")).encode()))
        return Case("paths and headers", method, chance.choice((*PATHS, *OTHERS)), body, (header,))


def _clip(kind: str, subtype: str) -> bytes:
    out = io.BytesIO()
    rate = 16_000
    wave = 0.3 * np.sin(np.arange(rate // 2, dtype=np.float32) * np.linspace(0.1, 0.5, rate // 2, dtype=np.float32))
    soundfile.write(out, wave, rate, format=kind, subtype=subtype)
    return out.getvalue()


def _broken(clip: bytes, chance: random.Random) -> bytes:
    data = bytearray(clip)
    way = chance.randrange(6)
    if way == 0:  # cut
        return bytes(data[: chance.randrange(len(data))])
    if way == 1:  # the header: rates, channels, lengths
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(min(64, len(data)))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    elif way == 2:  # anywhere
        for _ in range(chance.randrange(1, 200)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif way == 3:  # a stretch twice, or left out
        at, length = chance.randrange(len(data)), chance.randrange(1, 2000)
        return (
            bytes(data[:at] + data[max(0, at - length) :])
            if chance.random() < 0.5
            else bytes(data[:at] + data[at + length :])
        )
    elif way == 4:  # a beginning, then anything
        return bytes(data[: chance.randrange(4, 100)]) + chance.randbytes(chance.randrange(5000))
    else:  # numbers of four bytes
        at = chance.randrange(max(1, min(200, len(data) - 4)))
        data[at : at + 4] = chance.choice((b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"))
    return bytes(data)


def _spoil(tree: Any, chance: random.Random) -> None:
    """Put something hostile into a random place of a tree, or take something out."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = chance.choice(keys) if keys else None
        if key is None:
            return
        if isinstance(tree[key], dict | list) and tree[key] and chance.random() < 0.7:
            tree = tree[key]
            continue
        way = chance.randrange(6)
        if way == 0:
            del tree[key]
        elif way == 1 and isinstance(tree, dict):
            tree[chance.choice(("unknown", "", "role", "type", "content", "\x00", "temperature ", "__class__"))] = tree[
                key
            ]
        elif way == 2 and isinstance(tree, list):
            tree.extend(copy.deepcopy(tree[key]) for _ in range(chance.choice((1, 50))))
        else:
            tree[key] = copy.deepcopy(chance.choice(HOSTILE))
        return


def _json(tree: Any) -> str:
    return json.dumps(tree)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
