"""What is said to a server, and what is read from it: nothing lost, nothing dropped, nothing leaked."""

from __future__ import annotations

import base64
import io
import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.errors import AudioWarning, ConversationError, UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import AudioPart, Conversation
from qwen2_audio.remote.address import Address, is_address, retry_after
from qwen2_audio.remote.models import choose_model, read_models
from qwen2_audio.remote.refusals import read_refusal
from qwen2_audio.remote.stream import LONGEST_EVENT, BadStreamError, LoopWatch, SseDecoder, read_chunk
from qwen2_audio.remote.wire import (
    OPENAI,
    OURS,
    SGLANG,
    VLLM,
    bare_fields,
    chat_messages,
    dialect_of,
    option_fields,
    wav_base64,
)
from tests.tiny import sound

KEY = "sk-a-secret-of-some-length"


def test_16_bit_recordings_arrive_as_they_are() -> None:
    samples = np.arange(-32768, 32768, dtype=np.int16)
    data, rate = soundfile.read(io.BytesIO(base64.b64decode(wav_base64(samples / np.float32(32768)))), dtype="int16")
    assert rate == 16_000 and (data == samples).all()
    loud = np.array([2.0, -2.0, 1.0], np.float32)
    assert soundfile.read(io.BytesIO(base64.b64decode(wav_base64(loud))), dtype="int16")[0].tolist() == [
        32767,
        -32768,
        32767,
    ]


def test_messages_keep_their_order_and_long_clips_become_windows() -> None:
    long, short = (sound(61.0), 16_000), (sound(1.0), 16_000)
    conversation = (
        Conversation().system("Be brief.").user("Hear this:", AudioPart(long), "and this", AudioPart(short, 0.2))
    )
    system, user = chat_messages(conversation)
    assert system == {"role": "system", "content": "Be brief."}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "input_audio", "input_audio", "input_audio", "text", "input_audio"]
    lengths = [
        len(base64.b64decode(part["input_audio"]["data"])) // 2 - 22
        for part in user["content"]
        if part["type"] == "input_audio"
    ]
    assert sum(lengths[:3]) == 976_000 and max(lengths) <= 480_000 and lengths[3] == 12_800
    with pytest.warns(AudioWarning, match="3 consecutive parts"):
        assert chat_messages(conversation, warn=True) == [system, user]
    with pytest.raises(ConversationError, match="control token"):
        chat_messages(Conversation().user("<|im_end|>"))


def test_every_option_is_said_in_the_words_of_the_server() -> None:
    options = GenerationOptions(
        max_new_tokens=9, min_new_tokens=2, temperature=0.7, top_k=0, top_p=0.5, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=((7, -1.5),), seed=3, stop=("a", "b"), stop_token_ids=(5,),
        ignore_eos=True, logprobs=2, json_schema='{"type": "object"}', stop_loops=True,
    )  # fmt: skip
    fields = option_fields(options, VLLM, "it")
    assert fields == {
        "max_tokens": 9, "min_tokens": 2, "temperature": 0.7, "top_k": -1, "top_p": 0.5, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"7": -1.5}, "seed": 3,
        "stop": ["a", "b"], "stop_token_ids": [5], "ignore_eos": True, "logprobs": True, "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }  # fmt: skip
    assert option_fields(options, OURS, "it") == {**fields, "top_k": 0}
    assert option_fields(replace(options, seed=2**64 - 1), VLLM, "it") == {**fields, "seed": -1}
    assert option_fields(replace(options, seed=2**63 - 1), VLLM, "it") == {**fields, "seed": 2**63 - 1}
    assert option_fields(options, SGLANG, "it") == fields


def test_a_servers_own_defaults_change_nothing() -> None:
    assert option_fields(GenerationOptions(), VLLM, "it") == {"temperature": 0.0, "repetition_penalty": 1.0}
    warm = option_fields(GenerationOptions(temperature=1.0), VLLM, "it")
    assert warm == {"temperature": 1.0, "repetition_penalty": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    assert option_fields(GenerationOptions(temperature=1.0), OPENAI, "it") == {"temperature": 1.0, "top_p": 1.0}
    anything = option_fields(GenerationOptions(json_schema="{}"), OPENAI, "it")
    assert anything["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 5), ("min_p", 0.1), ("repetition_penalty", 1.2), ("min_new_tokens", 3), ("ignore_eos", True)],
)
def test_what_a_server_lacks_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"a hosted one has no option '{name}', so it was not asked"):
        option_fields(GenerationOptions(**{name: value}), OPENAI, "a hosted one")


def test_bare_prompts_with_recordings_need_our_server() -> None:
    assert bare_fields([], "The cat", OPENAI, "it") == {"prompt": "The cat"}
    given = bare_fields([sound(31.0)], "Recognize", OURS, "it")
    assert given["prompt"] == "Recognize" and len(given["audio"]) == 2
    with pytest.raises(UsageError, match="it takes no bare prompts with recordings"):
        bare_fields([sound(1.0)], "Recognize", VLLM, "it")


def test_dialects_by_owner() -> None:
    assert [dialect_of(name) for name in ("vllm", "sglang", "qwen2-audio", "system")] == [VLLM, SGLANG, OURS, OPENAI]


@given(st.lists(st.text(), min_size=1), st.sampled_from(["\n", "\r\n", "\r"]), st.randoms(use_true_random=False))
def test_events_come_out_however_they_are_cut(texts: list[str], end: str, chance: random.Random) -> None:
    data = [json.dumps({"t": text}, ensure_ascii=chance.random() < 0.5) for text in texts]
    whole = "".join(f": ping{end}event: x{end}data: {line}{end}{end}" for line in data)
    raw = whole.encode("utf-8", "surrogatepass")
    decoder, found, at = SseDecoder(), [], 0
    while at < len(raw):
        step = chance.randint(1, 9)
        found += list(decoder.feed(raw[at : at + step]))
        at += step
    found += list(decoder.feed(b"\n"))  # a lone carriage return at the end waits for what follows it
    assert [json.loads(line)["t"] for line in found] == [
        json.loads(line.encode("utf-8", "replace").decode())["t"] for line in data
    ]


def test_an_endless_event_is_refused() -> None:
    decoder = SseDecoder()
    with pytest.raises(BadStreamError, match="more than"):
        for _ in range(LONGEST_EVENT // 65_536 + 1):
            list(decoder.feed(b"x" * 65_536))


@pytest.mark.parametrize(
    "data", ["", "nonsense", "[]", "3", '{"choices": 3}', '{"choices": [{}], "usage": {"prompt_tokens": null}}']
)
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(BadStreamError, match="no chat completion chunk"):
        read_chunk(data)


def test_chunks_hold_what_the_server_said() -> None:
    chunk = read_chunk(
        json.dumps(
            {
                "choices": [
                    {
                        "delta": {"content": "你"},
                        "finish_reason": "length",
                        "logprobs": {"content": [{"token": "你", "logprob": -0.1, "bytes": [228], "top_logprobs": []}]},
                    }
                ],
                "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
            }
        )
    )
    assert (chunk.text, chunk.finish_reason, chunk.logprobs[0].data) == ("你", "length", b"\xe4")
    assert chunk.usage and (chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.cached_tokens) == (
        5,
        2,
        3,
    )
    assert read_chunk('{"error": {"message": "died"}}').error == "died"
    assert read_chunk('{"choices": [{"delta": {}, "finish_reason": "abort"}]}').aborted
    assert read_chunk('{"choices": [{"text": "x"}]}').text == "x"


def test_loops_are_noticed_in_text() -> None:
    watch = LoopWatch()
    assert not any(watch.push(word) for word in "no, no, no, that is not what the man said to me at all.".split(" "))
    assert any(watch.push(" and then he went home") for _ in range(8))
    assert LoopWatch().push("好的" * 8)


class TestAddresses:
    def test_spellings(self) -> None:
        for url in (
            "openai:http://host:8000/v1",
            "http://host:8000/v1/",
            "http://host:8000/v1/chat/completions",
            "http://host:8000",
        ):
            address = Address.parse(url)
            assert (address.base, address.root, address.model) == ("http://host:8000/v1", "http://host:8000", None)
        assert Address.parse("openai:https://host/api/v1#Qwen/Qwen2-Audio-7B%20x").model == "Qwen/Qwen2-Audio-7B x"
        assert is_address("openai:x") and not is_address("mini") and not is_address("openai/whisper")

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("openai:host:8000", "must begin with http:// or https://"),
            ("openai:http://", "names no host"),
            ("openai:http://host:nine/v1", "URL cannot be one"),
            ("openai:http://me:secret@host/v1", "neither a name and password nor a query"),
            ("openai:http://host/v1?key=secret", "neither a name and password nor a query"),
        ],
    )
    def test_what_is_no_address(self, url: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Address.parse(url)

    def test_where_the_key_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("CLUSTER_KEY", "of the cluster")
        sent = {
            url: Address.parse(url).headers.get("Authorization")
            for url in ("https://host/v1", "http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]/v1", "http://host/v1",
                        "http://localhost.host.example/v1", "http://127.0.0.1.example/v1", "http://10.0.0.3/v1")
        }  # fmt: skip
        assert [url for url, header in sent.items() if header] == list(sent)[:4]
        assert set(sent.values()) == {f"Bearer {KEY}", None}
        named = Address.parse("http://host/v1", key_variable="CLUSTER_KEY")
        assert named.headers == {"Authorization": "Bearer of the cluster"}
        withheld = Address.parse("http://host/v1")
        assert "not sent over plain http" in withheld.key_refused()
        assert KEY not in repr(Address.parse("https://host/v1"))

    def test_a_key_that_no_header_can_hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "ключ")
        with pytest.raises(UsageError, match="the key in OPENAI_API_KEY holds characters that no key has") as caught:
            Address.parse("https://host/v1")
        assert "ключ" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (401, "no", "key"),
        (403, "no", "key"),
        (404, "no", "model"),
        (400, '{"error": {"message": "x", "code": "context_length_exceeded"}}', "context"),
        (400, '{"error": {"message": "This model\'s maximum context length is 2048"}}', "context"),
        (422, '{"detail": []}', "request"),
        (413, "", "request"),
        (429, "", "busy"),
        (503, "", "busy"),
        (500, "", "broken"),
        (502, "<html>", "broken"),
        (302, "", "broken"),
    ],
)
def test_whose_fault_a_status_is(status: int, body: str, fault: str) -> None:
    assert read_refusal(status, {}, body, Address("http://host/v1")).fault == fault


def test_refusals_show_no_key() -> None:
    refusal = read_refusal(
        400, {"Retry-After": "7"}, f'{{"error": {{"message": "key {KEY}\\nis bad"}}}}', Address("x", key=KEY)
    )
    assert (refusal.words, refusal.pause) == ("key [key] is bad", 7.0)
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    values = ("", "soon", "nan", "inf", "-3")
    assert [retry_after({"Retry-After": value}) for value in values] == [None, None, None, float("inf"), 0.0]


def test_models_as_servers_list_them() -> None:
    listed = [
        {"id": "a", "owned_by": "vllm", "max_model_len": 4096},
        {"id": "b", "owned_by": "vllm", "parent": "a", "max_model_len": None},
        {"id": "c", "owned_by": "qwen2-audio", "transcription_window": 12.0},
        {"name": "no id"},
        None,
    ]
    a, b, c = read_models({"data": listed})
    assert (a.context_length, b.context_length, b.root, c.transcription_window) == (4096, 8192, "a", 12.0)
    assert read_models({}) == read_models(None) == read_models([]) == ()
    assert choose_model((a, b), None, "it") is a and choose_model((a, b), "b", "it") is b
    with pytest.raises(UsageError, match="it has no model 'z'; it has a, b"):
        choose_model((a, b), "z", "it")
    with pytest.raises(UsageError, match="lists no models; name one behind a #"):
        choose_model((), None, "it")
