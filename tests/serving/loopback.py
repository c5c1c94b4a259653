"""A public internet of one machine: a resolver that says what it is told, and a transport that ends at this machine."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx

PUBLIC = "93.184.216.34"
"""An address that is public; nothing is ever sent there."""


class Names:
    """A resolver. Each name has its addresses, in turn if there are several lists of them."""

    def __init__(self, **known: Sequence[Sequence[str]]) -> None:
        self.known = {name.replace("_", "."): list(turns) for name, turns in known.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        turns = self.known.get(host, [[PUBLIC]])
        return turns.pop(0) if len(turns) > 1 else turns[0]


class ToLoopback(httpx.AsyncBaseTransport):
    """Sends what goes to a public address to a port of this machine; whatever else is asked for is a failure of the guard."""

    def __init__(self, port: int, verify: ssl.SSLContext | bool = False) -> None:
        self.port = port
        self.inner = httpx.AsyncHTTPTransport(verify=verify)
        self.sent: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append((request.url.host, request.headers["Host"]))
        assert request.url.host == PUBLIC
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a web server in which `answer` sees every GET; with a context it speaks HTTPS."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients may go away, or dislike the certificate."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(10)
