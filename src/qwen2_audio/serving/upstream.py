"""`UpstreamBackend`: answers from OpenAI-compatible servers elsewhere (vLLM, SGLang, ours), one or several.

The server with the fewest answers in progress is asked. One that cannot be reached is left out until it answers again; one
that fails is left alone for a while, longer each time. Before the first piece of an answer has come, a question that meets
trouble goes on to the next server; after that it ends in `EngineLostError`, for what was said cannot be taken back.
Clients of ours learn no addresses: those stand in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import httpx

from qwen2_audio.errors import AudioError, ContextLengthError, UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.remote.address import Address
from qwen2_audio.remote.models import read_models
from qwen2_audio.remote.refusals import Refusal, read_failure, read_refusal
from qwen2_audio.remote.stream import BadStreamError, Chunk, SseDecoder, read_chunk
from qwen2_audio.remote.wire import Dialect, completion_fields, option_fields
from qwen2_audio.serving.backend import (
    BarePrompt,
    Delta,
    EngineLostError,
    Job,
    ModelCard,
    OverloadedError,
    UnknownModelError,
)
from qwen2_audio.serving.upstream_answer import Answer
from qwen2_audio.serving.upstream_pool import Engine, Pool
from qwen2_audio.serving.upstream_prompts import ENGINE, Body, Place, Prompts

_LOG = logging.getLogger("qwen2_audio.serving.upstream")
_CONNECT_SECONDS = 5.0
_HEALTH_SECONDS = 5.0
_LONGEST_WAIT = 600.0
"""Seconds that clients are told to wait at most, whatever a server wishes."""
_RELISTED_EVERY = 12
"""Models are listed again so many health checks later: adapters come and go."""


class UpstreamBackend:
    """A `Backend` over one or several servers."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        key_variable: str | None = None,
        defaults: GenerationOptions | None = None,
        silence_timeout: float = 300.0,
        start_timeout: float = 60.0,
        health_interval: float = _HEALTH_SECONDS,
        max_queue_mib: int = 512,
    ) -> None:
        """
        Args:
            urls: such as "http://host:8000/v1", each with or without `openai:` in front.
            key_variable: the environment variable with their key; see `qwen2_audio.remote.address`.
            defaults: how they answer where a request does not say; None: greedily. Servers do not tell their own defaults,
                so every option that matters is sent.
            silence_timeout: seconds without a token, after which a server counts as lost.
            start_timeout: seconds within which the first server must answer.
            health_interval: seconds between looks at each server.
            max_queue_mib: encoded recordings in memory, of answers that have not begun; more are refused.

        Raises:
            UsageError: an address makes no sense, or is given twice.
        """
        addresses = [Address.parse(url, who="an engine", key_variable=key_variable) for url in urls]
        if not addresses or len({address.base for address in addresses}) < len(addresses):
            raise UsageError(f"give the address of at least one engine, each once; got {', '.join(urls) or 'none'}")
        if any(address.model for address in addresses):
            raise UsageError("an engine's address names no model behind a #: all that it has can be asked for by name")
        self._pool = Pool([Engine(address) for address in addresses], time.monotonic)
        self._defaults = defaults or GenerationOptions()
        self._timeout = httpx.Timeout(silence_timeout, connect=_CONNECT_SECONDS, pool=None)
        self._start_timeout = start_timeout
        self._health_interval = health_interval
        self._prompts = Prompts(max_queue_mib << 20)
        self._http: httpx.AsyncClient | None = None
        self._health: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._answered = asyncio.Event()

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """What the servers list."""
        return tuple(
            ModelCard(model.name, model.context_length, model.transcription_window, self._defaults, model.root)
            for model in self._pool.models
        )

    @property
    def ready(self) -> bool:
        """Whether one of the servers can be asked."""
        return any(self._pool.usable(engine) for engine in self._pool.engines)

    def gauges(self) -> dict[str, float]:
        """As `Backend` says; of the caches of servers elsewhere nothing is known here."""
        usable = sum(self._pool.usable(engine) for engine in self._pool.engines)
        running = sum(engine.outstanding for engine in self._pool.engines)
        return {
            "requests_running": running, "requests_waiting": 0, "cache_usage": 0, "engine_restarts": 0,
            "engines_usable": usable,
        }  # fmt: skip

    async def start(self) -> None:
        """Look at every server once, and go on looking until one answers.

        Raises:
            EngineLostError: none of them answered in time; the message says why not.
        """
        # keep-alive connections that the server closes meanwhile are retried; proxies of the environment are not for these
        self._http = httpx.AsyncClient(
            timeout=self._timeout, trust_env=False, follow_redirects=False, limits=httpx.Limits(max_connections=None)
        )
        self._health = asyncio.create_task(self._look_after())
        try:
            async with asyncio.timeout(self._start_timeout):
                await self._answered.wait()
        except TimeoutError:
            reasons = [f"{engine.address.base}: {await self._trouble(engine)}" for engine in self._pool.engines]
            await self.close()
            raise EngineLostError(
                f"no engine answered within {self._start_timeout:g} s ({'; '.join(reasons)}); start one, or mend the address"
            ) from None

    async def close(self) -> None:
        """Hang up everywhere."""
        if self._health is not None:
            self._health.cancel()
            await asyncio.wait([self._health])
            self._health = None
        if self._http is not None:
            await self._http.aclose()
            self._http = None
        for engine in self._pool.engines:
            engine.reachable = False

    async def generate(self, job: Job) -> AsyncIterator[Delta]:
        """Answer a job by one of the servers; see `Backend.generate`."""
        with self._prompts.hold(job.prompt) as prompt:
            async with aclosing(self._answer(job, prompt)) as deltas:
                async for delta in deltas:
                    prompt.release()  # no other server is asked any more
                    yield delta

    async def _answer(self, job: Job, prompt: Place) -> AsyncGenerator[Delta]:
        tried: set[Engine] = set()
        busy: list[float] = []
        while (engine := self._pool.choose(job.model, tried)) is not None:
            tried.add(engine)
            begun = False
            engine.outstanding += 1
            try:
                async with aclosing(self._ask(engine, job, prompt)) as deltas:
                    async for delta in deltas:
                        begun = True
                        if delta.finish_reason:  # whoever has read that one hangs up
                            self._pool.worked(engine)
                        yield delta
                return
            except OverloadedError as error:
                busy.append(error.retry_after)
            except EngineLostError:
                self._pool.failed(engine)
                self._look.set()
                if begun:
                    raise
            finally:
                engine.outstanding -= 1
        if busy:
            raise OverloadedError("every engine that could answer has too much to do; try again later", min(busy))
        raise self._nobody(job.model)

    async def tokenize(self, prompt: Conversation | BarePrompt, model: str) -> tuple[list[int], int]:
        """The ids of a prompt, as the server that has the model says them.

        Raises:
            UsageError: it cannot say.
        """
        engine = self._pool.choose(model)
        if engine is None:
            raise self._nobody(model)
        known = engine.model(model)
        if known is None or not known.dialect.tokenizes or isinstance(prompt, BarePrompt):
            raise UsageError("the engine behind this server cannot say the tokens of such a prompt")
        try:
            with self._prompts.hold(prompt) as held:
                body = await held.body({"model": model}, known.dialect)
                headers = {**body.headers, **engine.address.headers}
                response = await self._client.post(engine.address.root + "/tokenize", content=body, headers=headers)
            if response.status_code == httpx.codes.OK:
                return [int(token) for token in response.json()["tokens"]], known.context_length
            refusal = read_refusal(response.status_code, response.headers, response.text, engine.address)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise self._lost(engine, str(error) or type(error).__name__) from error
        raise _error_of(refusal)

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            raise EngineLostError("the server is shutting down")
        return self._http

    @staticmethod
    def _fields(job: Job, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        """The path of a question, and what it says beside the prompt."""
        usage = {"include_usage": True} | ({"continuous_usage_stats": True} if dialect.counts else {})
        fields = {"model": job.model, "stream": True, "stream_options": usage}
        options = option_fields(job.options, dialect, ENGINE)
        if isinstance(job.prompt, BarePrompt):
            return "/completions", fields | completion_fields(options)
        return "/chat/completions", fields | options

    async def _ask(self, engine: Engine, job: Job, prompt: Place) -> AsyncGenerator[Delta]:
        """The deltas of one server.

        Raises:
            OverloadedError, EngineLostError: it cannot answer now, another one may.
            UsageError, ContextLengthError, UnknownModelError: it does not take the job, nor would another one.
        """
        known = engine.model(job.model)
        if known is None:
            raise UnknownModelError(f"no model {job.model!r} is served here")
        path, fields = self._fields(job, known.dialect)
        content = await prompt.body(fields, known.dialect)
        answer, begun = Answer(stop_loops=job.options.stop_loops), False
        try:
            async with aclosing(self._chunks(engine, path, content)) as chunks:
                async for chunk in chunks:
                    if chunk.error:
                        raise self._failure(engine, chunk, begun=begun)
                    if chunk.aborted:
                        raise self._lost(engine, "the engine gave an answer up")
                    begun = begun or bool(chunk.text)
                    for delta in answer.push(chunk):
                        yield delta
                    if answer.over:
                        return
        except httpx.ConnectError as error:
            engine.reachable = False
            raise self._lost(engine, str(error)) from error
        except (httpx.HTTPError, httpx.StreamError, BadStreamError, RuntimeError) as error:
            raise self._lost(engine, str(error) or type(error).__name__) from error
        if not answer.finished:
            raise self._lost(engine, "the answer broke off")
        yield answer.end()

    async def _chunks(self, engine: Engine, path: str, content: Body) -> AsyncGenerator[Chunk]:
        headers = {**content.headers, **engine.address.headers}
        decoder = SseDecoder()
        async with self._client.stream(
            "POST", engine.address.base + path, content=content, headers=headers
        ) as response:
            if response.status_code != httpx.codes.OK:
                body = (await response.aread()).decode("utf-8", "replace")
                refusal = read_refusal(response.status_code, response.headers, body, engine.address)
                if refusal.fault in ("key", "broken", "busy"):
                    _LOG.warning("%s: status %d: %s", engine.address.base, refusal.status, refusal.words)
                raise _error_of(refusal)
            async for piece in response.aiter_bytes():
                for data in decoder.feed(piece):
                    if data == "[DONE]":
                        return
                    yield read_chunk(data)

    async def _look_after(self) -> None:
        """Ask every server how it is, for ever; sooner when something went wrong."""
        rounds = 0
        while True:
            relist = rounds % _RELISTED_EVERY == 0
            await asyncio.gather(*(self._check(engine, relist=relist) for engine in self._pool.engines))
            rounds += 1
            if any(engine.reachable for engine in self._pool.engines):
                self._answered.set()
            self._look.clear()
            waiting = self._health_interval if self._answered.is_set() else min(1.0, self._health_interval)
            with suppress(TimeoutError):
                async with asyncio.timeout(waiting):
                    await self._look.wait()
                await asyncio.sleep(min(0.2, self._health_interval))  # what just broke is not asked at once

    async def _check(self, engine: Engine, *, relist: bool) -> None:
        trouble = await self._trouble(engine, relist=relist)
        if trouble and engine.reachable:
            _LOG.warning("%s is out of service: %s", engine.address.base, trouble)
        elif not trouble and not engine.reachable:
            _LOG.info("%s serves %s", engine.address.base, ", ".join(model.name for model in engine.models))
        engine.reachable = not trouble

    async def _trouble(self, engine: Engine, *, relist: bool = True) -> str:
        """Why a server cannot be asked, "" where it can; its models are listed again if need be.

        That it lists them is not enough: one whose engine died, or is still being loaded, does so too.
        """
        try:
            if relist or not engine.models or not engine.reachable:
                trouble = await self._list_models(engine)
                if trouble or engine.models[0].dialect.health is None:
                    return trouble
            health = engine.models[0].dialect.health
            if health is None:
                return await self._list_models(engine)
            response = await self._get(engine, engine.address.root + health)
            if response.status_code == httpx.codes.NOT_FOUND:  # something in front of it passes /v1 only
                return await self._list_models(engine)
            return "" if response.status_code == httpx.codes.OK else f"status {response.status_code} from its {health}"
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__

    async def _get(self, engine: Engine, url: str) -> httpx.Response:
        return await self._client.get(url, headers=engine.address.headers, timeout=httpx.Timeout(_CONNECT_SECONDS))

    async def _list_models(self, engine: Engine) -> str:
        """Ask what it serves; returns what is wrong with the answer."""
        response = await self._get(engine, engine.address.base + "/models")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return engine.address.key_refused()
        if response.status_code != httpx.codes.OK:
            return f"status {response.status_code} from its /models: {engine.address.quoted(response.text)}"
        try:
            models = read_models(response.json())
        except ValueError as error:
            return str(error) or type(error).__name__
        engine.models = models or engine.models
        return "" if models else "it lists no models"

    def _failure(self, engine: Engine, chunk: Chunk, *, begun: bool) -> Exception:
        """What an error in the stream is: before any text the refusal that it says, else the loss of the engine."""
        failure = read_failure(chunk, engine.address)
        if begun or failure.fault in ("key", "broken"):
            return self._lost(engine, chunk.error)
        return _error_of(failure)

    def _lost(self, engine: Engine, why: str) -> EngineLostError:
        _LOG.warning("%s failed: %s", engine.address.base, engine.address.quoted(why))
        return EngineLostError("the engine was lost while it answered; try again")

    def _nobody(self, model: str) -> Exception:
        names = [known.name for known in self._pool.models]
        if model in names or not names:
            return EngineLostError("no engine can be reached that could answer; try again later")
        return UnknownModelError(f"there is no model {model!r} here; there are {', '.join(names)}")


def _error_of(refusal: Refusal) -> Exception:
    """What a server's refusal is to a client of ours."""
    if refusal.fault == "busy":
        return OverloadedError(
            "the engine has too much to do; try again later", min(refusal.pause or 1.0, _LONGEST_WAIT)
        )
    if refusal.fault in ("key", "broken"):
        return EngineLostError("the engine behind this server does not answer; try again later")
    if refusal.fault == "model":
        return UnknownModelError(f"the engine has no such model: {refusal.words}")
    if refusal.fault == "context":
        return ContextLengthError(refusal.words)
    return AudioError(refusal.words) if refusal.code == "invalid_audio" else UsageError(refusal.words)
