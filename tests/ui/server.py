"""The page on a server of its own: a thread with an event loop, a port that is free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

import uvicorn

from qwen2_audio.serving.app import create_app
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.ui.mount import mount_ui

SECONDS = 60
"""The longest that starting or ending may take."""


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    """The address of the page while it is served."""
    started: Queue[uvicorn.Server] = Queue()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(backend, started)))
    thread.start()
    server = started.get(timeout=SECONDS)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(SECONDS)


async def _serve(backend: Backend, started: Queue[uvicorn.Server]) -> None:
    settings = Settings.read({"host": "127.0.0.1"})
    app = create_app(backend, settings)
    mount_ui(app, app.state.backend, settings, app.state.media)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=2)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
        if serving.done():
            serving.result()
    started.put(server)
    await serving
