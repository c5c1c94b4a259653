"""Clients that go away: what was done for them ends at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_present(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled, down to the engine, when the client goes away.

    Raises:
        ClientGoneError: it did.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("the client closed the connection before its answer was ready")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
