"""The server's life: listen, say when it is ready, and end in order when told to."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from qwen2_audio.errors import UsageError
from qwen2_audio.serving.connections import protocol, socket_protocol
from qwen2_audio.serving.settings import Settings

_HEAD_BYTES = 64 * 1024
"""The longest head of a request."""
_MESSAGES_AHEAD = 8
"""Messages of a WebSocket that may wait to be read."""


class Server(uvicorn.Server):
    """uvicorn under the limits of the settings. SIGTERM or Ctrl-C ends it in order, a second Ctrl-C at once."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        check_certificate(settings)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(settings),
                ws=socket_protocol(settings),
                ws_max_size=settings.max_event_kib * 1024,
                ws_max_queue=_MESSAGES_AHEAD,
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=math.ceil(settings.header_timeout),
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
                h11_max_incomplete_event_size=_HEAD_BYTES,
                ssl_certfile=settings.ssl_certfile or None,
                ssl_keyfile=settings.ssl_keyfile or None,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but an end in order is no death by signal: the process exits with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check_certificate(settings: Settings) -> None:
    """Raise `UsageError` where the files for https cannot be used."""
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if not certificate and not key:
        return
    if not certificate or not key:
        raise UsageError("https needs both ssl_certfile and ssl_keyfile; give the other one too")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot use the certificate {certificate} with the key {key}: {reason}; give PEM files, the key without a password"
        ) from error


def listen(settings: Settings) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        UsageError: the address is no address of this machine, or taken.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}: {error.strerror or error}; give an address of this machine"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror or error}; choose another --port") from error
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Where a browser on this machine finds what listens there."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{local}]:{port}" if ":" in local else f"{scheme}://{local}:{port}"


async def serve(server: Server, app: FastAPI, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until told to end; `announce` is called once questions would be answered.

    Raises:
        Qwen2AudioError: the backend could not be started.
    """
    watching = asyncio.create_task(_announce(server, app, announce))
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    starting: asyncio.Task[None] = app.state.starting
    if not starting.cancelled():
        starting.result()


async def _announce(server: Server, app: FastAPI, announce: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    await asyncio.wait((app.state.starting,))
    if app.state.starting.exception() is None:
        announce()
    else:
        server.should_exit = True
