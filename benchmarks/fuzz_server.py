"""Thousands of malformed requests, clips and connections against a live server: it must answer each in order and go on.

    python benchmarks/fuzz_server.py --model mini --count 5000
    python benchmarks/fuzz_server.py --url http://127.0.0.1:8000 --count 500

Starts `qwen2-audio serve`, or takes the server at --url. Every answer must come within --patience seconds, must not be a 5xx,
and a 4xx must have the shape of OpenAI's errors. Raw connections that say nothing, trickle, vanish or announce 3 GB must be
closed. Before and after, the same request has the same answer. The memory of the server's processes, taken after each twentieth
of the requests, must not grow over the second half. Prints a summary, --json as one object; exits with 1 where anything failed.
A failed case is named by its number: --seed and --only NUMBER make it again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from fuzz_cases import Case, Cases
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

MIB = 1 << 20
_SETTINGS = {"HEADER_TIMEOUT": "3", "RECEIVE_TIMEOUT": "3", "SEND_TIMEOUT": "3", "ACCESS_LOG": "false"}
"""Shorter than usual, so that connections which say nothing are given up while we look."""


@dataclass
class Findings:
    """What happened.

    Attributes:
        statuses: of answers, by the way the request was made.
        failures: at most a line for each case that went wrong.
        memory: MiB of all the server's processes, over the run.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    slowest: float = 0.0

    def count(self, kind: str, outcome: str) -> None:
        self.statuses.setdefault(kind, Counter())[outcome] += 1

    @property
    def growth(self) -> float:
        """MiB by which the second half of the run lies above its own beginning, by least squares."""
        half = self.memory[len(self.memory) // 2 :]
        if len(half) < 2:
            return 0.0
        middle, mean = (len(half) - 1) / 2, sum(half) / len(half)
        slope = sum((at - middle) * (value - mean) for at, value in enumerate(half))
        return slope / sum((at - middle) ** 2 for at in range(len(half))) * (len(half) - 1)


async def ask(client: httpx.AsyncClient, case: Case, number: int | str, found: Findings, patience: float) -> str:
    """Send a case, judge the answer, return its text."""
    began = time.monotonic()
    where = f"{number} ({case.kind}, {case.method} {case.path[:40]})"
    headers = [(name.encode(), value.encode("latin-1")) for name, value in case.headers]
    try:
        async with asyncio.timeout(patience):
            response = await client.request(case.method, case.path, content=case.body, headers=headers)
    except TimeoutError:
        found.failures.append(f"{where}: no answer within {patience:g} s")
        return ""
    except httpx.RemoteProtocolError as error:  # it closed: in order where the request was no HTTP
        found.count(case.kind, "closed")
        if case.kind != "paths and headers":
            found.failures.append(f"{where}: {error}")
        return ""
    except httpx.HTTPError as error:
        found.failures.append(f"{where}: {error!r}")
        return ""
    found.slowest = max(found.slowest, time.monotonic() - began)
    found.count(case.kind, str(response.status_code))
    if response.status_code >= 500:
        found.failures.append(f"{where}: {response.status_code} {response.text[:200]}")
    elif response.status_code >= 400 and case.method != "HEAD" and not _is_openais(response):
        found.failures.append(f"{where}: {response.status_code} not in OpenAI's shape: {response.text[:200]!r}")
    return response.text


def _is_openais(response: httpx.Response) -> bool:
    try:
        return set(response.json()["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False


async def talk(url: str, events: list[str | bytes], number: int, found: Findings, patience: float) -> None:
    """Send hostile events over a WebSocket."""
    address = url.replace("http", "ws", 1) + "/v1/realtime"
    outcome = "closed"
    try:
        async with asyncio.timeout(patience), connect(address, proxy=None, open_timeout=patience) as socket:
            outcome = "open"
            for event in events:
                await socket.send(event)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    while True:
                        await socket.recv()
    except TimeoutError:
        found.failures.append(f"socket {number}: stuck")
    except (WebSocketException, OSError) as error:
        response = getattr(error, "response", None)
        received = getattr(error, "rcvd", None)
        outcome = str(response.status_code if response else received.code if received else outcome)
        if outcome in ("1011", "1006") or outcome.startswith("5"):
            found.failures.append(f"socket {number}: {outcome} {error}")
    found.count("websockets", outcome)


RAW: dict[str, tuple[tuple[bytes, ...], float]] = {
    "says nothing": ((), 0.0),
    "a byte of the head at a time": (tuple(bytes([byte]) for byte in b"GET /health HTTP/1.1\r\nX: " + b"a" * 900), 0.1),
    "a byte of the body at a time": (
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 999\r\n\r\n", *([b"{"] * 900)),
        0.1,
    ),
    "3 GB announced": (
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3221225472\r\n\r\n{",),
        0.0,
    ),
    "chunks without end": (
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n",
            *([b"40000\r\n" + bytes(0x40000) + b"\r\n"] * 2000),
        ),
        0.0,
    ),
    "an upload without end": (
        (
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=B\r\n\r\n",
            *([b"40000\r\n" + bytes(0x40000) + b"\r\n"] * 2000),
        ),
        0.0,
    ),
    "a head without end": ((b"GET / HTTP/1.1\r\n", *([b"X-" + b"a" * 8000 + b": b\r\n"] * 200)), 0.0),
    "a chunk of no size": (
        (b"POST /tokenize HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",),
        0.0,
    ),
    "two lengths": (
        (b"POST /tokenize HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",),
        0.0,
    ),
    "length and chunks": (
        (
            b"POST /tokenize HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
        ),
        0.0,
    ),
    "TLS": ((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),), 0.0),
    "no HTTP": ((b"\x00" * 1000 + b"\r\n\r\n",), 0.0),
}


async def misbehave(url: str, name: str, found: Findings, patience: float) -> None:
    """A raw connection; the server must close it, in time, and not with a 5xx."""
    parts = urlsplit(url)
    pieces, pause = RAW[name]
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            reading = asyncio.create_task(reader.read())
            with contextlib.suppress(OSError):
                for piece in pieces:
                    if reading.done():
                        break
                    writer.write(piece.replace(b"{host}", parts.netloc.encode()))
                    await writer.drain()
                    await asyncio.sleep(pause)
            try:
                answer = await reading
            except OSError:
                answer = b""
            writer.close()
    except TimeoutError:
        found.failures.append(f"raw connection '{name}': still open after {patience:g} s")
        return
    status = answer.split(b" ", 2)[1].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed"
    found.count("raw connections", status)
    if status.startswith("5"):
        found.failures.append(f"raw connection '{name}': {status}")


async def vanish(url: str, case: Case, found: Findings) -> None:
    """Ask for a stream and go away in the middle of it."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = case.body.replace(b'"stream": false', b'"stream": true').replace(b'"max_tokens": 2', b'"max_tokens": 200')
    head = f"POST {case.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.transport.abort()
    found.count("vanish mid-stream", "gone")


async def fuzz(url: str, pid: int | None, args: argparse.Namespace) -> Findings:
    """The whole run."""
    found, cases = Findings(), Cases(args.seed, args.name)
    once = httpx.Limits(max_keepalive_connections=0)  # one that is kept may be closed just when it is used again
    numbers = iter(range(args.count) if args.only is None else (args.only,))
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, limits=once) as client:
        before = _text_of(await ask(client, cases.good(), "good", found, args.patience))
        raw = [asyncio.create_task(misbehave(url, name, found, args.patience)) for name in RAW if args.only is None]

        async def worker() -> None:
            for number in numbers:
                await ask(client, cases[number], number, found, args.patience)
                if args.only is None and number % 50 == 0:
                    await talk(url, cases.events(number), number, found, args.patience)
                    await vanish(url, cases.good(), found)
                if pid is not None and number % max(1, args.count // 20) == 0:
                    found.memory.append(_memory(pid))

        await asyncio.gather(*(worker() for _ in range(args.clients)), *raw)
        after = _text_of(await ask(client, cases.good(), "good", found, args.patience))
        health = await client.get("/health")
    if health.status_code != 200:
        found.failures.append(f"/health: {health.status_code}")
    if not before or before != after:
        found.failures.append(f"the same request was answered {before!r} before and {after!r} after")
    if found.growth > args.growth:
        found.failures.append(f"memory grew by {found.growth:.0f} MiB over the second half: {found.memory}")
    return found


def _text_of(answer: str) -> str:
    try:
        return json.dumps(json.loads(answer)["choices"])
    except (ValueError, KeyError):
        return ""


def _memory(pid: int) -> float:
    """MiB of a process and its children that are theirs alone."""
    total = 0
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += each.memory_full_info().uss
    return round(total / MIB, 1)


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Address and process of the server."""
    if args.url:
        yield args.url.rstrip("/"), args.pid
        return
    environment = {**os.environ, **{f"QWEN2_AUDIO_{name}": value for name, value in _SETTINGS.items()}}
    code = "from qwen2_audio.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", args.model, "--name", args.name, "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        address = next((word for word in line.split() if word.startswith("http://")), None)
        if address is None:
            raise SystemExit(f"the server did not start: {line!r}")
        yield address.rstrip("/."), process.pid
    finally:
        process.terminate()
        process.wait(60)


def report(found: Findings, args: argparse.Namespace) -> dict[str, Any]:
    """The summary as one object."""
    total = sum(sum(counts.values()) for counts in found.statuses.values())
    return {
        "requests": total,
        "seed": args.seed,
        "outcomes": {kind: dict(sorted(counts.items())) for kind, counts in sorted(found.statuses.items())},
        "slowest_seconds": round(found.slowest, 2),
        "memory_mib": found.memory,
        "memory_growth_mib": round(found.growth, 1),
        "failures": found.failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="what to serve")
    parser.add_argument("--name", default="mini", help="what requests call it")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--pid", type=int, help="its process, for its memory")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--patience", type=float, default=120.0)
    parser.add_argument("--growth", type=float, default=64.0, help="MiB that memory may grow over the second half")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with us
    with server(args) as (url, pid):
        found = asyncio.run(fuzz(url, pid, args))
    summary = report(found, args) | {"seconds": round(time.monotonic() - began, 1)}
    if args.json:
        print(json.dumps(summary))
    else:
        for kind, counts in summary["outcomes"].items():
            print(f"{kind:20} " + "  ".join(f"{status}: {number}" for status, number in counts.items()))
        print(f"{summary['requests']} requests in {summary['seconds']} s, slowest {summary['slowest_seconds']} s")
        print(f"memory {found.memory[:1]} to {found.memory[-1:]} MiB, {found.growth:+.1f} MiB over the second half")
        print("\n".join(found.failures) or "no 5xx, no hang, no other shape of error, no growth of memory")
    raise SystemExit(bool(found.failures))


if __name__ == "__main__":
    main()
