"""Recordings at addresses that strangers name, fetched without reaching anything that is not public.

A server that fetches what it is told to is a way into the network behind it. So the host is resolved once, every address it
has must be one of the public internet, and the connection goes to exactly that address; a name that points elsewhere a
moment later (DNS rebinding) changes nothing. Each redirect is a new address, checked the same way.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TypeAlias

import httpx

from qwen2_audio.errors import AudioError, TooLargeError
from qwen2_audio.serving.settings import MIB, Settings

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host and a port to its addresses."""
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_AUTHORITY = re.compile(
    r"(?i)(https?)://(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::([0-9]{1,5}))?(?=[/?#]|$)"
)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_NUMERIC = re.compile(r"(?i)(?:[^:]*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Hosts that resolvers read as numbers: 2130706433, 0x7f.1, 127.1."""
_PORTS = {"http": 80, "https": 443}
_LOWEST_FREE_PORT = 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_URL = 4096
_MAX_ADDRESSES = 4
_SPECIAL = (ipaddress.ip_network("192.88.99.0/24"), ipaddress.ip_network("3fff::/20"))
"""Not public either: relays of 6to4, documentation."""
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RESOLVERS = ThreadPoolExecutor(8, "resolve")
"""Of their own: a name server that does not answer must not keep the threads that decode and cut recordings."""
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, by the system's resolver."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, ask)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, and so does each IPv4 address that it carries inside."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # for instance with a zone: fe80::1%eth0
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        last = str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF))
        if ip in _NAT64:
            return is_public(last)
        if (
            ip not in _GLOBAL_V6
            or ip.teredo is not None
            or (ip.sixtofour is not None and not is_public(str(ip.sixtofour)))
        ):
            return False
        if int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP and not is_public(last):
            return False
    special = any(ip in network for network in _SPECIAL if network.version == ip.version)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or special)


def _is_plain(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


class Fetcher:
    """Fetches recordings at http(s) addresses under the settings' limits.

    Args:
        resolver: host and port to addresses; for tests.
        transport: what sends requests; for tests.
    """

    def __init__(
        self, settings: Settings, resolver: Resolver = resolve, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._resolve = resolver
        self._transport = transport

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """Made when it is first needed: reading all certificates takes a while."""
        return httpx.AsyncClient(
            transport=self._transport,
            timeout=httpx.Timeout(self._settings.fetch_timeout, connect=self._settings.connect_timeout),
            trust_env=False,  # no proxy and no .netrc of whoever started the server
            follow_redirects=False,
            headers={"User-Agent": "qwen2-audio", "Accept": "audio/*, */*;q=0.5", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close what is open."""
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def fetch(self, url: str) -> bytes:
        """The bytes at an address.

        Raises:
            TooLargeError: there are more than allowed.
            AudioError: the address is refused, does not answer in time, or answers with something else than a recording.
        """
        if not self._settings.fetch_urls:
            raise AudioError("this server fetches no addresses; send the recording itself (input_audio)")
        name = shown(url)
        try:
            async with asyncio.timeout(self._settings.fetch_timeout):
                return await self._follow(url, name)
        except TimeoutError:
            raise AudioError(
                f"{name} did not arrive within {self._settings.fetch_timeout:g} s; send it itself"
            ) from None
        except httpx.RemoteProtocolError:
            raise AudioError(f"{name} was cut short, or its server does not speak HTTP; check the address") from None
        except (httpx.InvalidURL, UnicodeError):
            raise AudioError(f"{name} leads to something that is no address; check it") from None
        except (httpx.HTTPError, OSError):
            raise AudioError(f"{name} cannot be fetched: its server does not answer; check the address") from None

    async def _follow(self, url: str, name: str) -> bytes:
        checked = self._check(url, name)
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._get(checked, name)
            if isinstance(answer, bytes):
                return answer
            checked = self._check_redirect(checked, answer, name)
        raise AudioError(f"{name} leads on more than {self._settings.max_redirects} times; give the last address")

    def _check(self, url: str, name: str) -> httpx.URL:
        """The address in parts, of which all that follows is made: what is checked is what is fetched."""
        found = _AUTHORITY.match(url) if len(url) <= _MAX_URL and not _FORBIDDEN.search(url) else None
        if found is None:
            raise AudioError(f"{name} is no address of a recording; give http(s)://host/path, without a user name")
        scheme, host = found[1].lower(), found[2].strip("[]").lower()
        if _NUMERIC.fullmatch(host) and not _is_plain(host):
            raise AudioError(f"{name} names its host by a number in an unusual form; give its name")
        parsed = httpx.URL(url)
        if (parsed.scheme, _host_of(parsed)) != (scheme, host) or parsed.userinfo:
            raise AudioError(f"{name} can be read in two ways; give a plain http(s)://host/path")
        if parsed.port is not None and not (
            parsed.port in _PORTS.values() or _LOWEST_FREE_PORT <= parsed.port < 1 << 16
        ):
            raise AudioError(
                f"{name} names port {parsed.port}, where no recordings are; use 80, 443 or one from 1024 on"
            )
        allowed = self._settings.allowed_media_hosts
        if allowed and host not in allowed:
            raise AudioError(f"{name}: this server fetches from {', '.join(allowed)} only; send the recording itself")
        return parsed

    def _check_redirect(self, before: httpx.URL, location: str, name: str) -> httpx.URL:
        if _FORBIDDEN.search(location):
            raise AudioError(f"{name} leads to something that is no address; give the last address")
        after = self._check(str(before.join(location)), name)
        if before.scheme == "https" and after.scheme == "http":
            raise AudioError(f"{name} leads from https to http; give the last address")
        there, here = ((url.scheme, _host_of(url), _port_of(url)) for url in (after, before))
        to_https = here[::2] == ("http", _PORTS["http"]) and there[::2] == ("https", _PORTS["https"])
        moved = there[2] != here[2] and not to_https
        if moved or (after.port is not None and there != here):  # None: the port of its scheme
            raise AudioError(f"{name} leads to another port; give the last address")
        return after

    async def _get(self, url: httpx.URL, name: str) -> bytes | str:
        """The body, or where a redirect leads."""
        failed: httpx.TransportError | None = None
        for address in (await self._addresses(url, name))[:_MAX_ADDRESSES]:
            request = self._client.build_request(
                "GET",
                url.copy_with(host=address, fragment=None),
                # no connection is kept: it would serve whatever host has the same address, its certificate unseen
                headers={"Host": url.netloc.decode("ascii"), "Connection": "close"},
                extensions={"sni_hostname": _host_of(url)},  # the certificate must be the host's
            )
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
                continue
            try:
                return await self._body(response, name)
            finally:
                await response.aclose()
        raise failed or httpx.ConnectError("no address")

    async def _addresses(self, url: httpx.URL, name: str) -> Sequence[str]:
        host = _host_of(url)
        try:
            found: Sequence[str] = [str(ipaddress.ip_address(host))]
        except ValueError:
            found = await self._resolve(host, _port_of(url))
        if not found or not all(is_public(address) for address in found):  # which ones they are is nobody's business
            raise AudioError(f"{name} is not on the public internet, where alone this server fetches; send it itself")
        return found

    async def _body(self, response: httpx.Response, name: str) -> bytes | str:
        limit = self._settings.max_clip_mib * MIB
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return response.headers["location"]
        if response.status_code != 200:
            raise AudioError(f"{name}: its server answered {response.status_code}; check the address")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AudioError(f"{name} comes compressed, unasked; send the recording itself")
        if response.headers.get("content-type", "").lower().startswith("text/html"):
            raise AudioError(f"{name} is a web page (HTML), not a recording; give the address of the file itself")
        data = bytearray()
        async for piece in response.aiter_raw():  # counted as it comes: a header can say anything
            data += piece
            if len(data) > limit:
                raise TooLargeError(f"{name} is larger than {limit // MIB} MiB; cut the recording first")
        if data[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise AudioError(f"{name} is a web page (HTML), not a recording; give the address of the file itself")
        return bytes(data)


def _host_of(url: httpx.URL) -> str:
    """As it goes over the network; `url.host` would show xn--... in the letters that it stands for."""
    return url.raw_host.decode("ascii")


def _port_of(url: httpx.URL) -> int:
    return url.port or _PORTS[url.scheme]


def shown(url: str) -> str:
    """An address for messages: without what follows ? (often a signature) and without user and password."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    start, separator, rest = bare.partition("://")
    host, slash, path = rest.partition("/")
    text = f"{start}{separator}{host.rpartition('@')[2]}{slash}{path}"
    return "".join(c if c.isprintable() else "?" for c in text[:200])
