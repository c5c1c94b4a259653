"""Asking one server, blocking: the connection behind a `RemoteAssistant`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from qwen2_audio.errors import ContextLengthError, ServerError, UsageError
from qwen2_audio.remote.address import Address
from qwen2_audio.remote.models import RemoteModel, choose_model, read_models
from qwen2_audio.remote.refusals import Refusal, read_failure, read_refusal
from qwen2_audio.remote.stream import BadStreamError, Chunk, SseDecoder, read_chunk

CONNECTIONS = 16
"""Questions asked at once."""
_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE = 30.0


class RemoteClient:
    """A server; threads may share it."""

    def __init__(self, address: Address, *, timeout: float, attempts: int, pause: float) -> None:
        """
        Args:
            timeout: seconds without a sign of life.
            attempts: how often a question is asked that meets a busy or absent server, before any of its answer came.
            pause: seconds before the second attempt, doubled before each further one.
        """
        if attempts < 1:
            raise UsageError(f"a server must be asked at least once, got attempts={attempts}")
        self.address = address
        self._attempts = attempts
        self._pause = pause
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
            headers=address.headers,
            limits=httpx.Limits(max_connections=CONNECTIONS),
            verify=address.base.startswith("https"),
            trust_env=not address.local,
            follow_redirects=False,
        )

    def model(self) -> RemoteModel:
        """The model that the address names, or the server's first.

        Raises:
            UsageError, ServerError: there is none; the server cannot be asked.
        """
        with self._opened("GET", "/models", None) as response:
            try:
                listing = json.loads(response.read())
            except ValueError:
                raise ServerError(
                    f"{self.address.base} is no OpenAI-compatible server: its /models is no JSON"
                ) from None
        return choose_model(read_models(listing), self.address.model, self.address.base)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Chunk]:
        """The chunks of an answer as they come; ending the iteration early ends the answer on the server too.

        Raises:
            UsageError, ContextLengthError: the server does not take the question, the key or the model.
            ServerError: it cannot be reached, is busy, or broke off.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
        with self._opened("POST", path, content) as response:
            try:
                begun = False
                for chunk in _chunks(response):
                    if chunk.error:
                        failure = read_failure(chunk, self.address)
                        if begun or failure.fault == "broken":
                            raise BadStreamError(failure.words)
                        raise self._error(failure)
                    begun = begun or bool(chunk.text)
                    yield chunk
            except (httpx.HTTPError, BadStreamError) as error:
                raise ServerError(f"the answer of {self.address.base} broke off ({error}); ask again") from error

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def _opened(self, method: str, path: str, content: bytes | None) -> Iterator[httpx.Response]:
        """A response with status 200, after as many attempts as it takes."""
        pause = self._pause
        for attempt in range(1, self._attempts + 1):
            outcome = self._attempt(method, path, content)
            if isinstance(outcome, httpx.Response):
                try:
                    yield outcome
                finally:
                    outcome.close()
                return
            if attempt == self._attempts or outcome.fault not in ("busy", "broken"):
                raise self._error(outcome)
            time.sleep(min(pause if outcome.pause is None else outcome.pause, _LONGEST_PAUSE))
            pause *= 2

    def _attempt(self, method: str, path: str, content: bytes | None) -> httpx.Response | Refusal:
        headers = {"Content-Type": "application/json"} if content else {}
        request = self._http.build_request(method, self.address.base + path, content=content, headers=headers)
        try:
            response = self._http.send(request, stream=True)
            if response.status_code == httpx.codes.OK:
                return response
            try:
                body = response.read().decode("utf-8", "replace")
            finally:
                response.close()
        except httpx.TimeoutException:
            return Refusal("broken", 0, f"no sign of life within {self._http.timeout.read:g} s")
        except httpx.HTTPError as error:
            return Refusal("broken", 0, str(error) or type(error).__name__)
        return read_refusal(response.status_code, response.headers, body, self.address)

    def _error(self, refusal: Refusal) -> Exception:
        base, said = self.address.base, f"(status {refusal.status}): {refusal.words}"
        if refusal.fault == "key":
            return UsageError(self.address.key_refused() if refusal.status == 401 else f"{base} lets nobody in {said}")
        if refusal.fault == "model":
            return UsageError(f"{base} has no such model or no such address {said}")
        if refusal.fault == "context":
            return ContextLengthError(f"{base} finds the prompt too long {said}")
        if refusal.fault == "request":
            return UsageError(f"{base} refuses the question {said}")
        if refusal.status == 0:
            return ServerError(f"cannot ask {base}: {refusal.words}; start the server, or give another address")
        return ServerError(f"{base} cannot answer just now {said}; try again later")


def _chunks(response: httpx.Response) -> Iterator[Chunk]:
    """Up to the end of the answer, which a stream must have, or to an error in it."""
    decoder, ended = SseDecoder(), False
    for piece in response.iter_bytes():
        for data in decoder.feed(piece):
            if data == "[DONE]":
                return
            chunk = read_chunk(data)
            if chunk.aborted:
                raise BadStreamError("the engine gave up")
            ended = ended or chunk.finish_reason is not None
            yield chunk
            if chunk.error:
                return
    if not ended:
        raise BadStreamError("the connection closed before the end")
