"""Engines elsewhere: asked in turn, left alone when they fail, never asked twice for what was half said."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from qwen2_audio.errors import ContextLengthError, UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import AudioPart, Conversation
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
from tests.tiny import sound

T = TypeVar("T")
LIMIT = 30.0
GREEDY = GenerationOptions(max_new_tokens=16)
KEY = "sk-a-secret-of-some-length"


@pytest.fixture
def one() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as server:
        yield server


@pytest.fixture
def two() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as server:
        yield server


def job(text: str = "Hello", *, model: str = "mini", options: GenerationOptions = GREEDY) -> Job:
    return Job(Conversation().user(text), options, model)


def using(
    servers: list[ScriptedServer] | list[str], act: Callable[[UpstreamBackend], Awaitable[T]], **options: Any
) -> T:
    """What `act` returns, given a backend over the servers that has started."""
    urls = [server if isinstance(server, str) else server.url for server in servers]

    async def run() -> T:
        backend = UpstreamBackend(urls, **{"health_interval": 0.05, "start_timeout": 5.0, **options})
        await backend.start()
        try:
            return await act(backend)
        finally:
            await backend.close()

    return asyncio.run(asyncio.wait_for(run(), LIMIT))


async def answer(backend: UpstreamBackend, asked: Job) -> list[Delta]:
    return [delta async for delta in backend.generate(asked)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


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


@pytest.mark.parametrize("trouble", [Refuse(500), Refuse(503), Refuse(429), Say(broken_after=0), Say(error_after=0)])
def test_another_engine_answers_where_one_fails(
    one: ScriptedServer, two: ScriptedServer, trouble: Say | Refuse
) -> None:
    one.usual = trouble

    async def act(backend: UpstreamBackend) -> list[str]:
        await until(lambda: len(one.looked) > 0 and len(two.looked) > 0)
        return [text_of(await answer(backend, job())) for _ in range(4)]

    assert using([one, two], act) == ["Hello!"] * 4
    assert 1 <= len(one.asked) <= 4 and len(two.asked) == 4
    if not isinstance(trouble, Refuse) or trouble.status == 500:
        assert len(one.asked) == 1  # then it is left alone for a while


def test_what_was_half_said_is_not_asked_again(one: ScriptedServer, two: ScriptedServer) -> None:
    one.usual = two.usual = Say(broken_after=2)

    async def act(backend: UpstreamBackend) -> list[str]:
        heard: list[str] = []
        with pytest.raises(EngineLostError):
            async for delta in backend.generate(job()):
                heard.append(delta.text)
        return heard

    assert using([one, two], act) == ["Hel", "lo"]
    assert len(one.asked) + len(two.asked) == 1


def test_when_all_are_busy_the_shortest_wait_is_told(one: ScriptedServer, two: ScriptedServer) -> None:
    one.usual, two.usual = Refuse(429, headers={"Retry-After": "9"}), Refuse(503, headers={"Retry-After": "4"})

    async def act(backend: UpstreamBackend) -> float:
        await until(lambda: len(one.looked) > 0 and len(two.looked) > 0)
        with pytest.raises(OverloadedError) as caught:
            await answer(backend, job())
        return caught.value.retry_after

    assert using([one, two], act) == 4.0


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refuse(400, "This model's maximum context length is 2048 tokens"), ContextLengthError),
        (Refuse(400, "temperature must be non-negative"), UsageError),
        (Refuse(422, "unprocessable"), UsageError),
        (Refuse(404, "the model `mini` does not exist"), UnknownModelError),
    ],
)
def test_what_no_engine_would_take_is_asked_once(
    one: ScriptedServer, two: ScriptedServer, refusal: Refuse, error: type[Exception]
) -> None:
    one.usual = two.usual = refusal

    async def act(backend: UpstreamBackend) -> None:
        with pytest.raises(error, match=refusal.message[:12]):
            await answer(backend, job())
        with pytest.raises(error, match=refusal.message[:12]):
            await backend.tokenize(job().prompt, "mini")

    using([one, two], act)
    assert len(one.asked) + len(two.asked) == 2


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


def test_an_engine_that_comes_back_is_asked_again() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]

    async def act(backend: UpstreamBackend) -> None:
        with running(ScriptedServer(port=port)):
            await until(lambda: backend.gauges()["engines_usable"] == 2)
        await until(lambda: backend.gauges()["engines_usable"] == 1)
        assert backend.ready and text_of(await answer(backend, job())) == "Hello!"

    with running(ScriptedServer()) as steady:
        using([steady.url, f"http://127.0.0.1:{port}/v1"], act)


def test_an_unhealthy_engine_is_left_out(one: ScriptedServer) -> None:
    async def act(backend: UpstreamBackend) -> None:
        one.healthy = False
        await until(lambda: not backend.ready)
        with pytest.raises(EngineLostError, match="no engine can be reached"):
            await answer(backend, job())
        one.healthy = True
        await until(lambda: backend.ready)
        await answer(backend, job())

    using([one], act)
    assert "/health" in one.looked


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


def test_redirects_are_not_followed(one: ScriptedServer, two: ScriptedServer) -> None:
    one.usual = Refuse(307, headers={"Location": two.url + "/chat/completions"})

    async def act(backend: UpstreamBackend) -> None:
        with pytest.raises(EngineLostError):
            await answer(backend, job())

    using([one], act)
    assert not two.asked


def test_nobody_there() -> None:
    with pytest.raises(EngineLostError, match=r"no engine answered within 0\.2 s \(http://127\.0\.0\.1:9/v1: "):
        using(["http://127.0.0.1:9"], lambda backend: answer(backend, job()), start_timeout=0.2)
    for urls in ([], ["http://a/v1", "openai:http://a/v1/"], ["http://a/v1#mini"]):
        with pytest.raises(UsageError):
            UpstreamBackend(urls)


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
