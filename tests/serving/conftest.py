"""A live server over a scripted backend, shared; each test gets the backend as new. And scripted engines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import httpx
import openai
import pytest

from tests.remote.scripted import ScriptedServer, running
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer, eventually

_COUNTS = {"started", "closed", "running"}


@pytest.fixture(scope="session")
def _live() -> Iterator[tuple[HttpServer, FakeBackend]]:
    backend = FakeBackend()
    with HttpServer(backend, keep_alive_interval=0.2) as server:
        yield server, backend


@pytest.fixture
def fake(_live: tuple[HttpServer, FakeBackend]) -> Iterator[FakeBackend]:
    """The backend of `server`, as new."""
    backend, new = _live[1], FakeBackend()
    for field in fields(FakeBackend):
        if field.name not in _COUNTS:
            setattr(backend, field.name, getattr(new, field.name))
    yield backend
    backend.holding = False
    eventually(lambda: backend.running == 0)


@pytest.fixture
def server(_live: tuple[HttpServer, FakeBackend], fake: FakeBackend) -> HttpServer:
    """A live server over `fake`."""
    return _live[0]


@pytest.fixture
def client(server: HttpServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client of `server`."""
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: HttpServer) -> Iterator[httpx.Client]:
    """A plain client of `server`."""
    with server.http() as client:
        yield client


@pytest.fixture
def one() -> Iterator[ScriptedServer]:
    """An engine elsewhere."""
    with running(ScriptedServer()) as server:
        yield server


@pytest.fixture
def two() -> Iterator[ScriptedServer]:
    """Another."""
    with running(ScriptedServer()) as server:
        yield server
