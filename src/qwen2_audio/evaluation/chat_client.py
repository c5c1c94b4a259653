"""One request after another to a chat model behind any OpenAI-compatible URL, and what may go wrong with it.

The judge is asked through it, and so is a model under test on a server; `name` says in messages who it is.
What can be different next time (no connection in time, a dropped one, status 408, 429 or 5xx, a reply that is no JSON) is
tried again, after a wait that doubles or that the server asks for. What concerns one request ends in a `Reply` with an
`error`; what every request would meet (a refused key, an unknown model, nobody at the address) ends the run by a UsageError.
No message shows the key, whatever a server quotes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from qwen2_audio.errors import UsageError
from qwen2_audio.remote.address import KEY_VARIABLE, check_url, key_for, retry_after, without_key

if TYPE_CHECKING:
    import httpx

Content: TypeAlias = "str | Sequence[Mapping[str, Any]]"
"""Of a message: a text, or parts of several kinds, in the form of the API."""
_LONGEST_QUOTE = 200
_LONGEST_PAUSE = 60.0
"""Seconds between two attempts, where the server does not ask for more."""
_PATIENCE = 3600.0
"""Seconds that one request may wait altogether."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request.

    Attributes:
        text: of the reply, also where it is a refusal.
        error: why there is none, "" where there is one.
        address: of the server that gave it, "" where that is not known.
    """

    text: str
    error: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why an attempt failed that may be made again; `pause` in seconds is the server's wish."""

    why: str
    pause: float | None = None
    limited: bool = False
    unreachable: bool = False


class ChatClient:
    """A chat model, asked one message at a time; threads may share it.

    Attributes:
        address: where it is asked, without what may be secret.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        name: str,
        key_variable: str | None,
        timeout: float,
        attempts: int,
        pause: float,
        connections: int,
        may_be_empty: bool = False,
    ) -> None:
        """
        Args:
            url: with or without `/chat/completions`, such as "http://localhost:8000/v1".
            name: what messages call it, such as "the judge".
            key_variable: the environment variable that holds the key; none is sent where it is not set. None: OPENAI_API_KEY,
                which is not sent over plain http to another machine.
            timeout: seconds without a sign of life.
            attempts: how often a request is made before it has failed; waiting for a rate limit does not count.
            pause: seconds before the second attempt, doubled before each further one.
            may_be_empty: whether an empty text is a reply; else it is trouble, and asked for again.

        Raises:
            UsageError: httpx is not installed, the URL or the key cannot be one, or there are no attempts.
        """
        try:
            import httpx
        except ImportError:
            raise UsageError(f'asking {name} needs the package httpx: pip install "qwen2-audio[eval]"') from None
        check_url(url, name)
        if attempts < 1:
            raise UsageError(f"{name} must be asked at least once, got attempts={attempts}")
        try:
            parts = urlsplit(url)
            path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
            self._url = httpx.URL(parts._replace(path=path).geturl())
        except (ValueError, httpx.InvalidURL) as error:
            raise UsageError(f"{name}'s URL cannot be one: {error}") from None
        if not self._url.host:
            raise UsageError(f"{name}'s URL names no host; give one such as http://localhost:8000/v1")
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
        self._who = f"{name} at {self.address}"
        self._model = model
        self._key_variable = key_variable or KEY_VARIABLE
        self._key, self._withheld = key_for(parts.scheme, self._url.host, key_variable)
        self._attempts = attempts
        self._pause = pause
        self._may_be_empty = may_be_empty
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=connections)
        secure = parts.scheme == "https"  # else there is nothing to verify, and no need to read all certificates
        self._http = httpx.Client(timeout=timeout, headers=headers, limits=limits, verify=secure)

    def ask(self, content: Content, *, temperature: float, max_tokens: int, stopped: threading.Event) -> Reply:
        """Ask in one user message, as often as it takes.

        Args:
            stopped: once it is set, a request that waits for another attempt ends at once.

        Raises:
            UsageError: the key is refused, the model unknown, the quota used up, or nobody listens at the URL.
        """
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        body = json.dumps(request).encode("ascii")
        failures, waited, pause = 0, 0.0, self._pause
        while True:
            outcome = self._attempt(body)
            if isinstance(outcome, Reply):
                return outcome
            failures += not outcome.limited
            if failures == self._attempts:
                if outcome.unreachable:
                    raise UsageError(
                        f"cannot reach {self._who}: {outcome.why}; start it and run the same command again, "
                        "or give another address"
                    )
                return Reply("", f"{outcome.why} ({failures} attempts)")
            wait = pause if outcome.pause is None else outcome.pause
            waited += wait
            if waited > _PATIENCE:
                raise UsageError(
                    f"{self._who} allows no more requests for now ({outcome.why}); "
                    "run the same command again later, what it replied so far is kept"
                )
            pause = min(2 * pause, _LONGEST_PAUSE)
            if stopped.wait(wait):
                return Reply("", "the run was stopped")

    def close(self) -> None:
        self._http.close()

    def _attempt(self, body: bytes) -> Reply | _Trouble:
        import httpx

        try:
            response = self._http.post(self._url, content=body, headers={"Content-Type": "application/json"})
        except httpx.TimeoutException:
            return _Trouble(f"no reply within {self._http.timeout.read:g} s")
        except httpx.ConnectError as error:
            return _Trouble(str(error), unreachable=True)
        except httpx.RequestError as error:
            return _Trouble(f"the connection broke: {error or type(error).__name__}")
        status = response.status_code
        if status == httpx.codes.OK:
            return self._read(response)
        why = f"status {status}: {self._quoted(response)}"
        if status == 401:  # without the server's words, which may quote the key
            state = "is refused" if self._key else "is not set"
            if self._withheld:
                state = "is not sent over plain http to another machine unless its variable is named"
            raise UsageError(
                f"{self._who} wants a valid key (status 401), and that in the environment variable "
                f"{self._key_variable} {state}; set it anew"
            )
        if status == 403:
            raise UsageError(f"{self._who} does not let this key in: {why}")
        if status == 404:
            raise UsageError(f"{self._who} has no model {self._model!r} or no such address: {why}")
        if status == 402 or (status == 429 and "insufficient_quota" in response.text):
            raise UsageError(f"the account at {self._who} is used up: {why}")
        if status in (408, 409, 425, 429) or status >= 500:
            return _Trouble(why, retry_after(response.headers), limited=status == 429)
        return Reply("", why)  # of this request: it would be refused again

    def _read(self, response: httpx.Response) -> Reply | _Trouble:
        """The text of a reply; a refusal's text is one too, for the parser to fail on."""
        try:
            message: Any = response.json()["choices"][0]["message"]
            content = message.get("content")
            text = content or message.get("refusal") or content
        except (ValueError, LookupError, TypeError, AttributeError):
            return _Trouble(f"the reply is no chat completion: {self._quoted(response)}")
        if not isinstance(text, str) or not (text or self._may_be_empty):
            return _Trouble(f"the reply has no text: {self._quoted(response)}")
        return Reply(text)

    def _quoted(self, response: httpx.Response) -> str:
        """The server's own words on one line, without the key."""
        return without_key(response.text, self._key, _LONGEST_QUOTE)
