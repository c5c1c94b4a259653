"""Where an OpenAI-compatible server is, and which key it may see.

A key goes to the host that the user named and to nobody else: redirects are never followed, and no message shows it. Where no
variable is named, that of OpenAI's own clients is meant, whose key is worth money elsewhere; so it is sent over https, or to
this machine, but not over plain http to another one. Naming the variable (`--api-key-env`, `key_variable=`) sends it there too.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from qwen2_audio.errors import UsageError

PREFIX = "openai:"
"""What a model's name begins with that is asked at an address."""
KEY_VARIABLE = "OPENAI_API_KEY"
_LONGEST_QUOTE = 300


def is_address(model: str) -> bool:
    """Whether a model's name is an address: `openai:http://host:8000/v1`, perhaps with `#MODEL` behind it."""
    return model.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class Address:
    """A server.

    Attributes:
        base: such as "http://host:8000/v1", without a slash at the end.
        model: the name after `#`, None where there is none.
        key: "" where none is sent.
        key_variable: the environment variable that it comes from.
        withheld: there is a key, but it is not sent over plain http to another machine.
    """

    base: str
    model: str | None = None
    key: str = field(default="", repr=False)
    key_variable: str = KEY_VARIABLE
    withheld: bool = False

    @classmethod
    def parse(cls, url: str, *, who: str = "the server", key_variable: str | None = None) -> Address:
        """Read an address and the environment.

        Args:
            url: with or without `openai:` in front; without a path, `/v1` is meant.
            who: what messages call the server.
            key_variable: the environment variable that holds the key; None: `OPENAI_API_KEY`, within the limits above.

        Raises:
            UsageError: it cannot be an address, or the variable cannot hold a key.
        """
        url = url.removeprefix(PREFIX)
        check_url(url, who)
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{who}'s URL cannot be one: {error}") from None
        if not host:
            raise UsageError(f"{who}'s URL names no host; give one such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query:
            raise UsageError(
                f"{who}'s URL must hold neither a name and password nor a query, both of which would be seen in lists of "
                "processes and logs; put the key into an environment variable"
            )
        path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
        base = parts._replace(path=path, query="", fragment="").geturl()
        key, withheld = key_for(parts.scheme, host, key_variable)
        return cls(base, unquote(parts.fragment) or None, key, key_variable or KEY_VARIABLE, withheld)

    @property
    def root(self) -> str:
        """The address without its `/v1`: where servers say how they are."""
        return self.base.removesuffix("/v1")

    @property
    def local(self) -> bool:
        """Whether it is this machine, which no proxy stands before."""
        return is_loopback(urlsplit(self.base).hostname or "")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def quoted(self, text: str) -> str:
        """A server's own words on one line, without the key."""
        return without_key(text, self.key, _LONGEST_QUOTE)

    def key_refused(self) -> str:
        """Why status 401 came, in words that help, and without the server's own, which may quote the key."""
        if self.withheld:
            return (
                f"{self.base} wants a key, and the one in {self.key_variable} is not sent over plain http to another machine; "
                "use https, or name the variable that holds this server's key (--api-key-env, key_variable=)"
            )
        state = "is refused" if self.key else "is not set"
        return (
            f"{self.base} wants a valid key (status 401), and that in the environment variable {self.key_variable} {state}; "
            "set it anew"
        )


def key_for(scheme: str, host: str, key_variable: str | None) -> tuple[str, bool]:
    """The key that a host may see, "" for none, and whether there is one that is withheld from it.

    Args:
        key_variable: None: `OPENAI_API_KEY`, over https or on this machine.

    Raises:
        UsageError: the variable holds what cannot be a key.
    """
    key = _read_key(key_variable or KEY_VARIABLE)
    withheld = bool(key) and key_variable is None and scheme != "https" and not is_loopback(host)
    return "" if withheld else key, withheld


def check_url(url: str, who: str) -> None:
    """Raise `UsageError` unless it is one of http or https."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{who}'s URL must begin with http:// or https://, got {url!r}")


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"the key in {variable} holds characters that no key has; set it anew")
    return key


def without_key(text: str, key: str, longest: int) -> str:
    """At most `longest` characters of a server's own words, on one line, the key replaced."""
    line = " ".join(text.split())
    return f"{line.replace(key, '[key]') if key else line:.{longest}}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine, without asking a resolver."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait for, which its header gives as a number or as a date; None where it does not say."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None
