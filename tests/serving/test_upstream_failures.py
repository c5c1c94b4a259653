"""Engines that fail, refuse or are not there: left alone for a while, never asked twice for what was half said."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from qwen2_audio.errors import ContextLengthError, UsageError
from qwen2_audio.serving.backend import EngineLostError, OverloadedError, UnknownModelError
from qwen2_audio.serving.upstream import UpstreamBackend
from tests.remote.scripted import Refuse, Say, ScriptedServer, running
from tests.serving.asking_upstream import answer, job, text_of, until, using


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


VLLM_SAYS = {"message": "token_id(s) [999999] in logit_bias contain out-of-vocab token ids", "type": "BadRequestError"}


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({**VLLM_SAYS, "param": None, "code": 400}, UsageError, "out-of-vocab"),
        ({**VLLM_SAYS, "code": None}, UsageError, "out-of-vocab"),
        ({"message": "no such schema", "type": "invalid_request_error", "code": "invalid_value"}, UsageError, "schema"),
        ({"message": "the maximum context length is 9", "code": 400}, ContextLengthError, "context length"),
        ({"message": "too long", "type": None, "code": "context_length_exceeded"}, ContextLengthError, "too long"),
        ({"message": "it died", "type": "server_error", "code": "engine_lost"}, EngineLostError, "no engine"),
        ({"message": "full", "type": "server_error", "code": "overloaded"}, OverloadedError, "too much to do"),
    ],
)
def test_an_error_in_the_stream_is_read_as_its_code_says(
    one: ScriptedServer, two: ScriptedServer, said: dict[str, Any], error: type[Exception], words: str
) -> None:
    """What is wrong with a question is told to whoever asked, and no engine is left alone for it."""
    one.usual = two.usual = Say(error_after=0, error=said)

    async def act(backend: UpstreamBackend) -> None:
        await until(lambda: backend.gauges()["engines_usable"] == 2)
        with pytest.raises(error, match=words):
            await answer(backend, job())
        lost = error is EngineLostError
        assert [engine.failures for engine in backend._pool.engines] == [int(lost)] * 2
        assert backend.ready is not lost

    using([one, two], act)
    assert len(one.asked) + len(two.asked) == (1 if error in (UsageError, ContextLengthError) else 2)


def test_after_the_first_words_every_error_is_the_loss_of_the_engine(one: ScriptedServer) -> None:
    one.usual = Say(error_after=1, error={"message": "full", "code": "overloaded"})

    async def act(backend: UpstreamBackend) -> None:
        with pytest.raises(EngineLostError):
            await answer(backend, job())

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


@pytest.mark.parametrize("owner", ["vllm", "qwen2-audio"])
def test_an_engine_that_lists_models_and_cannot_answer_is_left_out(owner: str) -> None:
    """As vLLM does whose engine died, and a server of ours whose model is being loaded."""
    with running(ScriptedServer(owner)) as engine:
        engine.lists, engine.healthy = True, False
        with pytest.raises(EngineLostError, match="status 503 from its /"):
            using([engine], lambda backend: answer(backend, job()), start_timeout=0.5)
        engine.healthy = True

        async def act(backend: UpstreamBackend) -> set[bool]:
            engine.healthy = False
            await until(lambda: not backend.ready)
            seen = set()
            for _ in range(30):  # several looks
                seen.add(backend.ready)
                await asyncio.sleep(0.01)
            return seen

        assert using([engine], act) == {False}


def test_an_engine_without_a_page_for_its_health_is_asked_for_its_models(one: ScriptedServer) -> None:
    one.front = True

    async def act(backend: UpstreamBackend) -> None:
        before = len(one.looked)
        await until(lambda: len(one.looked) > before + 6)
        assert backend.ready

    using([one], act)


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
