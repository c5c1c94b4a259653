"""Engines elsewhere: what they are asked, which of them, how much at once, and what is told of their answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import AudioPart, Conversation
from qwen2_audio.serving import upstream_prompts
from qwen2_audio.serving.answering import as_generator
from qwen2_audio.serving.backend import (
    BarePrompt,
    Delta,
    EngineLostError,
    Job,
    OverloadedError,
    UnknownModelError,
)
from qwen2_audio.serving.upstream import UpstreamBackend
from tests.remote.scripted import Refuse, Say, ScriptedServer, lengths, running
from tests.serving.asking_upstream import GREEDY, answer, job, text_of, until, using
from tests.tiny import sound

KEY = "sk-a-secret-of-some-length"


@pytest.mark.parametrize("owner", ["vllm", "sglang", "system"])
@pytest.mark.parametrize("silent", [False, True])
def test_an_answer_with_exact_counts(owner: str, silent: bool) -> None:
    with running(ScriptedServer(owner)) as server:
        server.usual = Say(silent_usage=silent)
        deltas = using([server], lambda backend: answer(backend, job()))
    assert text_of(deltas) == "Hello!"
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    if owner == "vllm":
        assert [delta.tokens for delta in deltas[:3]] == [1, 1, 1]
        assert {delta.prompt_tokens for delta in deltas} == {11}
    if not silent:
        assert sum(delta.tokens for delta in deltas) == 4
        assert (deltas[-1].prompt_tokens, deltas[-1].cached_tokens) == (11, 4)


def test_what_is_asked(one: ScriptedServer) -> None:
    asked = Conversation().system("Be brief.").user(AudioPart((sound(31.0), 16_000)), "What is said?")
    options = GenerationOptions(max_new_tokens=9, temperature=0.5, top_k=4, seed=7, stop=("x",), logprobs=2)

    async def act(backend: UpstreamBackend) -> list[Delta]:
        return await answer(backend, Job(asked, options, "mini"))

    deltas = using([one], act)
    path, _, body = one.asked[0]
    assert path == "/v1/chat/completions" and body["model"] == "mini" and body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (body["max_tokens"], body["temperature"], body["top_k"], body["seed"]) == (9, 0.5, 4, 7)
    assert sum(lengths(body)) == 31 * 16_000 and len(lengths(body)) == 2
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [one.token for delta in deltas for one in delta.logprobs] == ["Hel", "lo", "!"]
    assert deltas[0].logprobs[0].top == (("Hel", b"Hel", -0.5),)


def spoken(seconds: float) -> Conversation:
    return Conversation().user(AudioPart((sound(seconds), 16_000)), "What is said?")


def test_a_prompt_is_encoded_once_for_all_its_answers(one: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    one.script = [Refuse(503), Say(broken_after=0)]
    encoded: list[Conversation] = []
    usual = upstream_prompts.chat_messages
    monkeypatch.setattr(upstream_prompts, "chat_messages", lambda asked: encoded.append(asked) or usual(asked))
    asked = spoken(2.0)

    async def act(backend: UpstreamBackend) -> list[str]:
        jobs = [Job(asked, GenerationOptions(max_new_tokens=number), "mini") for number in (3, 4, 5, 6)]
        answers = await asyncio.gather(*(answer(backend, job) for job in jobs), return_exceptions=True)
        assert backend._prompts.nbytes == 0 and not backend._prompts._held
        return [text_of(each) for each in answers if isinstance(each, list)]

    assert using([one], act) == ["Hello!"] * 2
    assert encoded == [asked]
    assert sorted(body["max_tokens"] for body in one.bodies) == [3, 4, 5, 6]
    assert [lengths(body) for body in one.bodies] == [[32_000]] * 4
    assert all("Transfer-Encoding" not in headers for _, headers, _ in one.asked)


def test_what_waits_to_be_answered_is_bounded(one: ScriptedServer) -> None:
    """16 s of sound are 0.65 MiB in base64; what is being answered counts no more."""
    one.usual = Say(pause=0.5)

    async def act(backend: UpstreamBackend) -> None:
        asked = spoken(16.0)
        waiting = [asyncio.create_task(answer(backend, Job(asked, GREEDY, "mini"))) for _ in range(3)]
        await until(lambda: len(one.asked) == 3)
        with pytest.raises(OverloadedError, match="1 MiB of recordings are waiting") as refused:
            await answer(backend, Job(spoken(16.0), GREEDY, "mini"))
        assert refused.value.retry_after == 2
        with pytest.raises(OverloadedError):
            await backend.tokenize(spoken(16.0), "mini")
        await until(lambda: backend._prompts.nbytes == 0)
        assert not any(task.done() for task in waiting)
        assert text_of(await answer(backend, Job(spoken(32.0), GREEDY, "mini"))) == "Hello!"
        assert {text_of(deltas) for deltas in await asyncio.gather(*waiting)} == {"Hello!"}

    using([one], act, max_queue_mib=1)


def test_an_answer_that_is_given_up_leaves_its_place(one: ScriptedServer) -> None:
    one.usual = Say(pause=5)

    async def act(backend: UpstreamBackend) -> None:
        asked = spoken(1.0)
        tasks = [asyncio.create_task(answer(backend, Job(asked, GREEDY, "mini"))) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks[:2]:  # one of them was encoding it
            task.cancel()
        await until(lambda: len(one.asked) >= 1)
        assert backend._prompts.nbytes > 0
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert backend._prompts.nbytes == 0

    using([one], act)


def test_whoever_hangs_up_at_the_end_was_answered(one: ScriptedServer) -> None:
    async def act(backend: UpstreamBackend) -> int:
        [engine] = backend._pool.engines
        engine.failures = 3
        stream = as_generator(backend.generate(job()))
        async for delta in stream:
            if delta.finish_reason:
                break
        await stream.aclose()
        return engine.failures

    assert using([one], act) == 0


@pytest.mark.parametrize("alternatives", [0, 2])
def test_log_probabilities_of_text_completions(one: ScriptedServer, alternatives: int) -> None:
    options = GenerationOptions(max_new_tokens=9, logprobs=alternatives)
    deltas = using([one], lambda backend: answer(backend, Job(BarePrompt((), "The cat"), options, "mini")))
    path, _, body = one.asked[0]
    assert (path, body["logprobs"], "top_logprobs" in body) == ("/v1/completions", alternatives, False)
    found = [one for delta in deltas for one in delta.logprobs]
    assert [one.token for one in found] == ["Hel", "lo", "!"]
    assert {one.logprob for one in found} == {-0.5}
    assert found[0].top == ((("Hel", b"Hel", -0.5),) if alternatives else ())


def test_what_an_engine_cannot_is_refused_unasked() -> None:
    async def act(backend: UpstreamBackend) -> None:
        for asked in (
            job(options=GenerationOptions(repetition_penalty=1.2)),
            Job(BarePrompt((AudioPart((sound(1.0), 16_000)),), "Recognize"), GREEDY, "mini"),
        ):
            with pytest.raises(UsageError, match=r"repetition_penalty|no bare prompts with recordings"):
                await answer(backend, asked)
        assert text_of(await answer(backend, Job(BarePrompt((), "The cat"), GREEDY, "mini"))) == "Hello!"
        with pytest.raises(UsageError, match="cannot say the tokens"):
            await backend.tokenize(Conversation().user("Hello"), "mini")

    with running(ScriptedServer("system")) as server:
        using([server], act)
        assert [path for path, _, _ in server.asked] == ["/v1/completions"]
        assert server.bodies[0]["prompt"] == "The cat"


def test_circles_are_cut_here(one: ScriptedServer) -> None:
    one.usual = Say([" and", " so", " on"] * 50, pause=0.002)
    options = GenerationOptions(stop_loops=True)
    deltas = using([one], lambda backend: answer(backend, job(options=options)))
    assert deltas[-1].finish_reason == "length" and len(deltas) < 30
    assert "stop_loops" not in one.bodies[0]


def test_the_idler_engine_is_asked(one: ScriptedServer, two: ScriptedServer) -> None:
    one.usual = two.usual = Say(pause=1)  # nobody is done before the last has asked

    async def act(backend: UpstreamBackend) -> int:
        answers = [asyncio.create_task(answer(backend, job())) for _ in range(10)]
        await until(lambda: len(one.asked) + len(two.asked) == 10)
        running_now = int(backend.gauges()["requests_running"])
        assert {text_of(deltas) for deltas in await asyncio.gather(*answers)} == {"Hello!"}
        return running_now

    assert using([one, two], act) == 10
    assert (len(one.asked), len(two.asked)) == (5, 5)


def test_a_reader_that_goes_away_ends_the_answer_there(one: ScriptedServer) -> None:
    one.usual = Say(["word "] * 2000, pause=0.005)

    async def act(backend: UpstreamBackend) -> None:
        stream = backend.generate(job())
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        assert backend.gauges()["requests_running"] == 0
        task = asyncio.create_task(answer(backend, job()))
        await until(lambda: len(one.asked) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.gauges()["requests_running"] == 0
        await until(lambda: one.hung_up == 2)

    using([one], act)


def test_models_of_all_engines(one: ScriptedServer, two: ScriptedServer) -> None:
    two.models, two.extra = ["other", "mini"], {"max_model_len": 512, "transcription_window": 12.0}

    async def act(backend: UpstreamBackend) -> None:
        await until(lambda: len(backend.models) == 2)
        cards = {card.name: card for card in backend.models}
        assert list(cards) == ["mini", "other"] and cards["mini"].context_length == 2048
        assert (cards["other"].context_length, cards["other"].transcription_window) == (512, 12.0)
        await answer(backend, job(model="other"))
        with pytest.raises(UnknownModelError, match="no model 'none' here; there are mini, other"):
            await answer(backend, job(model="none"))

    using([one, two], act)
    assert not one.asked and two.bodies[0]["model"] == "other"


def test_the_key_and_who_learns_what(one: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("ENGINE_KEY", KEY)
    one.key = KEY
    one.usual = Refuse(500, f"failed with {KEY}")

    async def act(backend: UpstreamBackend) -> str:
        with pytest.raises(EngineLostError) as caught:
            await answer(backend, job())
        return str(caught.value)

    told = using([one], act, key_variable="ENGINE_KEY")
    assert one.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert "127.0.0.1" not in told and KEY not in told
    assert "status 500" in caplog.text and "127.0.0.1" in caplog.text and KEY not in caplog.text
    with pytest.raises(
        EngineLostError, match=r"wants a valid key \(status 401\).*OPENAI_API_KEY is not set"
    ) as refused:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        using([one], act, start_timeout=0.3)
    assert KEY not in str(refused.value)


def test_closing_ends_what_runs(one: ScriptedServer) -> None:
    one.usual = Say(["word "] * 2000, pause=0.01)

    async def act(backend: UpstreamBackend) -> None:
        task = asyncio.create_task(answer(backend, job()))
        await until(lambda: len(one.asked) == 1)
        await backend.close()
        with pytest.raises(EngineLostError):
            await task
        with pytest.raises(EngineLostError):
            await answer(backend, job())

    using([one], act)


def test_tokens_of_a_prompt(one: ScriptedServer) -> None:
    tokens = using([one], lambda backend: backend.tokenize(Conversation().user("Hello"), "mini"))
    assert tokens == ([1, 2, 3], 2048) and one.asked[0][0] == "/tokenize"
