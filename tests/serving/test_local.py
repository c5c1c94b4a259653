"""What comes out of the engine's process is what the `Assistant` says, alone or in company."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwen2_audio.api import Assistant, load
from qwen2_audio.errors import (
    AudioError,
    AudioWarning,
    CheckpointError,
    ContextLengthError,
    ConversationError,
    UsageError,
)
from qwen2_audio.generation.engine import Engine
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.request import Request
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.serving import engine_process
from qwen2_audio.serving.backend import BarePrompt, EngineLostError, Job, UnknownModelError
from qwen2_audio.serving.engine_messages import EnginePlan, Stop
from qwen2_audio.serving.engine_process import EngineLoop, load_batches
from qwen2_audio.serving.local import LocalBackend, LocalConfig, parse_adapter
from qwen2_audio.serving.supervisor import Pauses
from tests.serving.live import Live, deltas, text_of
from tests.tiny import IM_END_ID, sound

GREEDY = GenerationOptions(max_new_tokens=12)
LAYER = "language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training run gives that changes one layer a lot."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{LAYER}.lora_A": torch.randn(2, 64, generator=generator),
        f"{LAYER}.lora_B": torch.randn(64, 2, generator=generator),
    }
    file = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    save_file(tensors, file, metadata={"lora_scale": "0.5"})
    return file


@pytest.fixture(scope="module")
def live(folder: Path, trained: Path) -> Iterator[Live]:
    config = LocalConfig(str(folder), "tiny", (("changed", str(trained)),), device="cpu", pauses=Pauses(first=0.05))
    with Live(LocalBackend(config)) as running:
        yield running


@pytest.fixture(scope="module")
def assistant(folder: Path) -> Assistant:
    return load(folder, device="cpu")


def asking(seconds: float, text: str = "hello") -> Conversation:
    return Conversation().user(AudioPart((sound(seconds, seed=int(seconds * 10)), 16_000)), TextPart(text))


def alone(assistant: Assistant, conversation: Conversation) -> str:
    return assistant.chat(conversation, temperature=0, repetition_penalty=1.0, max_new_tokens=12).text


def test_chat_is_the_assistants_and_the_stream_is_the_whole(live: Live, assistant: Assistant) -> None:
    conversation = asking(1.5)
    reply = assistant.chat(conversation, temperature=0, repetition_penalty=1.0, max_new_tokens=12)
    answer = live.deltas(Job(conversation, replace(GREEDY, logprobs=0), "tiny"))
    assert text_of(answer) == reply.text
    assert sum(delta.tokens for delta in answer) == len(reply.tokens)
    assert {delta.prompt_tokens for delta in answer} == {reply.prompt_tokens}
    assert [delta.finish_reason for delta in answer if delta.finish_reason] == [reply.finish_reason]
    chosen = [entry.data for delta in answer for entry in delta.logprobs]
    tokenizer = assistant.processor.tokenizer
    assert chosen == [tokenizer.bytes_of(token) for token in reply.tokens]


def test_many_together_are_each_as_alone(live: Live, assistant: Assistant) -> None:
    conversations = [asking(0.4 + 0.3 * (n % 5), f"hello {n}") for n in range(12)]
    answers = live.all([Job(conversation, GREEDY, "tiny") for conversation in conversations])
    assert [text_of(answer) for answer in answers] == [alone(assistant, each) for each in conversations]


def test_a_seed_draws_the_same_whatever_else_runs(live: Live) -> None:
    drawn = Job(asking(0.8), GenerationOptions(max_new_tokens=12, temperature=1.0, seed=7), "tiny")
    first = text_of(live.deltas(drawn))
    others = [Job(asking(0.5 + n / 10), GREEDY, "tiny") for n in range(4)]
    assert [text_of(answer) for answer in live.all([drawn, *others, drawn])][:: len(others) + 1] == [first, first]


def test_logprobs_are_of_exact_bytes(live: Live) -> None:
    options = GenerationOptions(max_new_tokens=12, logprobs=3)
    answer = live.deltas(Job(asking(0.9), options, "tiny"))
    entries = [entry for delta in answer for entry in delta.logprobs]
    assert len(entries) == sum(delta.tokens for delta in answer)
    assert b"".join(entry.data for entry in entries).decode(errors="replace") == text_of(answer)
    for entry in entries:
        assert entry.token == entry.data.decode(errors="replace")
        assert len(entry.top) == 3
        values = [logprob for _, _, logprob in entry.top]
        assert values == sorted(values, reverse=True) and max(values) <= 0
        assert (entry.token, entry.data, entry.logprob) == entry.top[0]  # greedy
        assert sum(math.exp(value) for value in values) <= 1.0001


def test_a_token_that_ends_an_answer_is_counted_but_is_not_said(live: Live) -> None:
    """The logit bias makes the end likeliest."""
    options = GenerationOptions(max_new_tokens=12, logprobs=0, logit_bias=((IM_END_ID, 100.0),))
    (delta,) = live.deltas(Job(asking(0.6), options, "tiny"))
    assert (delta.text, delta.tokens, delta.finish_reason, delta.logprobs) == ("", 1, "stop", ())


def test_bare_prompts_and_tokenize(live: Live, assistant: Assistant) -> None:
    audio = (sound(1.1), 16_000)
    answer = live.deltas(Job(BarePrompt((AudioPart(audio),), "hello:"), GREEDY, "tiny"))
    reply = assistant.complete(audio, "hello:", temperature=0, repetition_penalty=1.0, max_new_tokens=12)
    assert text_of(answer) == reply.text
    ids, context = live.run(live.backend.tokenize(asking(1.5), "tiny"))
    assert (ids, context) == (assistant.processor.prepare(asking(1.5)).ids, 4096)


def test_what_is_over_30_seconds_is_heard_in_windows_without_a_warning(live: Live, assistant: Assistant) -> None:
    long = Conversation().user(AudioPart((sound(31.0), 16_000)), TextPart("hello"))
    answer = text_of(live.deltas(Job(long, GREEDY, "tiny")))  # a warning would be an error here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        assert answer == alone(assistant, long)


def test_a_prompt_that_was_seen_before_is_not_computed_again(live: Live) -> None:
    job = Job(asking(1.7, "the cat sat on the mat and the dog barked"), GREEDY, "tiny")
    first, second = live.deltas(job), live.deltas(job)
    assert text_of(first) == text_of(second)
    assert second[0].cached_tokens > first[0].cached_tokens
    assert {delta.cached_tokens for delta in second} == {second[0].cached_tokens}


def test_adapters_are_models_of_their_own(live: Live, folder: Path, trained: Path, assistant: Assistant) -> None:
    base, changed = live.backend.models
    assert (base.name, base.root, changed.name, changed.root) == ("tiny", None, "changed", "tiny")
    conversations = [asking(0.5 + n / 5) for n in range(3)]
    adapted = load(folder, adapter=trained, device="cpu")
    jobs = [Job(conversation, GREEDY, name) for conversation in conversations for name in ("tiny", "changed")]
    texts = [text_of(answer) for answer in live.all(jobs)]
    assert texts[0::2] == [alone(assistant, each) for each in conversations]
    assert texts[1::2] == [alone(adapted, each) for each in conversations]
    assert texts[0::2] != texts[1::2]


def test_a_models_context_is_what_fits_into_its_cache(folder: Path, trained: Path) -> None:
    backend = LocalBackend(LocalConfig(str(folder), adapters=(("changed", str(trained)),), cache_tokens=300))
    backend._read_checkpoint()
    assert [card.context_length for card in backend.models] == [150, 150]


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_an_adapter_shares_what_it_does_not_change(folder: Path, trained: Path, quantize: str) -> None:
    plan = EnginePlan(str(folder), "tiny", (("changed", str(trained)),), "cpu", quantize=quantize, cache_tokens=8000)
    base, changed = load_batches(plan).values()
    assert base._scheduler.limits.budget_tokens == changed._scheduler.limits.budget_tokens == 4000
    mine = dict(base._engine.model.named_parameters())
    for name, parameter in changed._engine.model.named_parameters():
        assert (parameter is mine[name]) == (name != f"{LAYER}.weight") or quantize == "int8"
    request = Request(list(range(3, 20)), options=GREEDY)
    tokens = []
    for batch in (base, changed):
        batch.add(0, request)
        tokens.append([step.token for _ in range(20) for step in batch.step()])
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("quantize", ["none", "auto"])
def test_nothing_is_loaded_twice_where_nothing_is_rounded(folder: Path, trained: Path, quantize: str) -> None:
    plan = EnginePlan(str(folder), "tiny", (("changed", str(trained)),), "cpu", dtype="float32", quantize=quantize)
    base, changed = (dict(batch._engine.model.named_parameters()) for batch in load_batches(plan).values())
    assert sum(changed[name] is parameter for name, parameter in base.items()) == len(base) - 1


def test_the_cache_is_what_memory_has_room_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "room", lambda _: 500)
    [batch] = load_batches(EnginePlan(str(folder), "tiny", (), "cpu")).values()
    assert batch._scheduler.limits.budget_tokens == 500


def test_requests_that_make_no_sense(live: Live) -> None:
    silence = Conversation().user(AudioPart((np.full(16_000, np.nan, np.float32), 16_000)))
    long = Conversation().user(*[AudioPart((sound(30.0), 16_000))] * 6)
    for job, error, message in (
        (Job(asking(1.0), GREEDY, "chnged"), UnknownModelError, "did you mean 'changed'"),
        (Job(asking(1.0), GREEDY, "zzz"), UnknownModelError, "served are tiny, changed"),
        (Job(silence, GREEDY, "tiny"), AudioError, "not numbers"),
        (Job(long, GREEDY, "tiny"), ContextLengthError, "too long"),
        (Job(Conversation(), GREEDY, "tiny"), ConversationError, "empty"),
        (Job(asking(1.0), replace(GREEDY, json_schema='{"type": 7}'), "tiny"), UsageError, "schema"),
    ):
        with pytest.raises(error, match=message):
            live.deltas(job)
    assert live.backend.gauges()["requests_waiting"] == 0


def test_cancelled_answers_give_their_place_to_others(live: Live, assistant: Assistant) -> None:
    endless = Job(asking(0.7), GenerationOptions(ignore_eos=True), "tiny")

    async def scenario() -> str:
        answers = [live.backend.generate(endless) for _ in range(4)]
        for answer in answers:
            await anext(answer)  # type: ignore[call-overload]
        assert live.backend.gauges()["requests_running"] == 4
        for answer in answers:
            await answer.aclose()  # type: ignore[attr-defined]
        while live.backend.gauges()["requests_running"] or live.backend.gauges()["cache_usage"]:
            await asyncio.sleep(0.01)
        return text_of(await deltas(live.backend, Job(asking(0.7), GREEDY, "tiny")))

    assert live.run(scenario()) == alone(assistant, asking(0.7))


def test_signals_to_the_whole_service_do_not_end_the_engine_before_the_front(live: Live, assistant: Assistant) -> None:
    pid = live.backend.engine_pid
    assert pid is not None
    for name in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, name)
    assert text_of(live.deltas(Job(asking(0.7), GREEDY, "tiny"))) == alone(assistant, asking(0.7))
    assert live.backend.engine_pid == pid


def test_killed_under_load_it_comes_back(live: Live, assistant: Assistant) -> None:
    endless = Job(asking(0.7), GenerationOptions(ignore_eos=True), "tiny")

    async def scenario() -> tuple[list[object], str]:
        tasks = [asyncio.create_task(deltas(live.backend, endless)) for _ in range(4)]
        while live.backend.gauges()["requests_running"] < 4:
            await asyncio.sleep(0.01)
        pid = live.backend.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        lost = await asyncio.gather(*tasks, return_exceptions=True)
        while not live.backend.ready:
            await asyncio.sleep(0.05)
        return list(lost), text_of(await deltas(live.backend, Job(asking(0.7), GREEDY, "tiny")))

    restarts = live.backend.gauges()["engine_restarts"]
    lost, answer = live.run(scenario())
    assert [type(end) for end in lost] == [EngineLostError] * 4
    assert answer == alone(assistant, asking(0.7))
    assert live.backend.gauges()["engine_restarts"] == restarts + 1


def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({f"{LAYER}.weight": torch.zeros(3, 3)}, file, metadata={"lora_scale": "1.0"})
    with pytest.raises(CheckpointError, match="of another model"):
        load_batches(EnginePlan(str(folder), "tiny", (("other", str(file)),), "cpu"))


def test_names() -> None:
    assert parse_adapter("a=~/b=c") == ("a", str(Path("~/b=c").expanduser()))
    for text in ("a", "=b", "a="):
        with pytest.raises(UsageError, match="NAME=FOLDER"):
            parse_adapter(text)
    with pytest.raises(UsageError, match="two models would be called 'mini'"):
        LocalConfig(adapters=(("mini", "x"),))
    assert LocalConfig("hf:Qwen/Qwen2-Audio-7B").served_name == "Qwen2-Audio-7B"


def test_the_engine_gives_freed_memory_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here at every turn; with the usual seconds between not at all, in so short a life."""

    def turns(seconds: float) -> int:
        given: list[bool] = []
        monkeypatch.setattr(engine_process, "_TIDY_SECONDS", seconds)
        monkeypatch.setattr(engine_process, "give_memory_back", lambda: given.append(True))
        ours, _ = Pipe()
        loop = EngineLoop(ours, {})
        orders = iter([True, True, False])
        monkeypatch.setattr(loop, "_take_orders", lambda: next(orders))
        loop.run()
        return len(given)

    assert turns(-1) == 2
    assert turns(60) == 0


def test_an_engine_that_falls_idle_gives_memory_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(engine_process, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(engine_process, "give_memory_back", lambda: given.append(True))
    ours, theirs = Pipe()
    loop = EngineLoop(ours, {})
    threading.Timer(0.3, lambda: theirs.send(Stop())).start()
    assert loop._take_orders() is False
    assert given == []
    loop._untidy = True
    threading.Timer(0.3, lambda: theirs.send(Stop())).start()
    loop.run()
    assert given == [True]
