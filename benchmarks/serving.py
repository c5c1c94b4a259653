"""Load on the server: many clients at once, and what became of each of their requests.

    python benchmarks/serving.py --clients 64 --seconds 120
    python benchmarks/serving.py --peer http://127.0.0.1:8001/v1 --peer-model mini

Starts `qwen2-audio serve` (or takes a running one's --url) and asks it about clips made on the spot from the recordings in
examples/ (and those below --data): cut, faster, slower, joined; chats and transcriptions, whole and streamed, and streams that
the client leaves. In this order: all known requests one by one, whose answers all later ones must equal; one client alone for
a while; all clients together; then some of the requests that only the crowd had sent, one by one, which must be equal, too.

It fails (exit code 1) if a request failed, an answer differs, a place in the engine stays taken, or files, threads or memory
grow. `ratio` is the requests a second of all clients over those of one client alone, on the same mix, half of which nobody had
asked before. With --peer both servers get the same chats about fresh clips of 5 s in turns; of requests a second `ratio` is
ours over theirs, of times to the first token theirs over ours: above 1 we are quicker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from serving_requests import Client, Mix, Outcome, load, read_recordings

ROOT = Path(__file__).parents[1]
SLACK = 8
"""Files, threads and processes that helpers may take which are started when they are first needed. What leaks with every
request is far more."""
MOST_GROWTH = 64 << 20
"""Bytes that memory may grow in the second half of the load: Python's and torch's allocators breathe."""
PEER_CLIP_SECONDS = 5.0


@contextmanager
def served(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """The address of a server and its process, which is ended at the end if it was started here."""
    if args.url:
        yield args.url, args.pid
        return
    command = [sys.executable, "-m", "qwen2_audio.cli.main", "serve", "--model", args.model, "--port", "0"]
    command += ["--name", args.name, *args.serve_option]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=args.log, text=True, env=environment) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            found = re.search(r"http://\S+", line)
            if found is None:
                raise SystemExit(f"the server did not start (exit code {server.wait()})")
            yield found.group().rstrip("/") + "/v1", server.pid
        finally:
            server.terminate()
            server.wait(60)


@dataclass
class Watch:
    """A process and its children: memory each second, and what it holds."""

    pid: int | None
    memory: list[int] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def _processes(self) -> list[psutil.Process]:
        if self.pid is None:
            return []
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def held(self) -> dict[str, int]:
        """Files, threads and processes."""
        processes = self._processes()
        files, threads = sum(p.num_fds() for p in processes), sum(p.num_threads() for p in processes)
        return {"files": files, "threads": threads, "processes": len(processes)}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the memory each second."""

        def note() -> None:
            while not self._over.wait(1.0):
                self.memory.append(sum(process.memory_info().rss for process in self._processes()))

        thread = threading.Thread(target=note, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    @property
    def growth(self) -> int:
        """Bytes from the second quarter of the time to the last."""
        quarter = len(self.memory) // 4
        if not quarter:
            return 0
        return int(statistics.median(self.memory[-quarter:]) - statistics.median(self.memory[quarter : 2 * quarter]))


async def slots(url: str) -> dict[str, float]:
    """What the server says of its engine."""
    async with httpx.AsyncClient(timeout=30) as http:
        text = (await http.get(url.removesuffix("/v1") + "/metrics")).text
    names = {"running": "num_requests_running", "waiting": "num_requests_waiting", "cache": "kv_cache_usage_perc"}
    return {name: _metric(text, full) for name, full in (*names.items(), ("restarts", "engine_restarts_total"))}


def _metric(text: str, name: str) -> float:
    found = re.search(rf"^\S*{name}\S* (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


async def idle_slots(url: str, patience: float = 30.0) -> dict[str, float]:
    """The same, once nothing runs, or after a while."""
    end = time.monotonic() + patience
    while True:
        found = await slots(url)
        if not (found["running"] or found["waiting"]) or time.monotonic() > end:
            return found
        await asyncio.sleep(0.2)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        f"p{share}": round(1000 * ordered[min(len(ordered) - 1, share * len(ordered) // 100)], 1)
        for share in (50, 90, 99)
    }


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Counts, rates and times of what happened in so many seconds."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    whole = [outcome for outcome in done if not outcome.cancelled]
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(done),
        "cancelled": len(done) - len(whole),
        "requests_per_second": round(len(whole) / seconds, 3),
        "seconds": round(seconds, 1),
        "first_token_ms": spread([outcome.first for outcome in done if outcome.first is not None]),
        "between_tokens_ms": spread([gap for outcome in done for gap in outcome.gaps]),
        "request_ms": spread([outcome.seconds for outcome in whole]),
    }


async def timed_load(client: Client, mix: Mix, clients: int, seconds: float, seed: int) -> tuple[list[Outcome], float]:
    """The outcomes, and how long it took until the last of them was there."""
    began = time.perf_counter()
    return await load(client, mix, clients, seconds, seed), time.perf_counter() - began


def same(outcome: Outcome, wanted: str) -> bool:
    """Whether an answer, or what there is of one that was left, is as it was alone."""
    return wanted.startswith(outcome.text) if outcome.cancelled else outcome.text == wanted


async def crowd(args: argparse.Namespace, url: str, pid: int | None) -> dict[str, Any]:
    """The load test."""
    mix = Mix(read_recordings([ROOT / "examples", *args.data]), args.known)
    client = Client(url, args.name, args.key, (args.min_tokens, args.max_tokens), args.clients)
    say(f"{args.known} known requests, one by one")
    alone = [await client.ask(case, stream=False) for case in mix.known]
    say(f"one client alone, {args.alone:g} s")
    single = summary(*await timed_load(client, mix, 1, args.alone, 0))
    say(f"{args.clients} clients, {args.warm_up:g} s to warm up, then {args.seconds:g} s")
    await timed_load(client, mix, args.clients, args.warm_up, 1_000_000)
    before, watch = await idle_slots(url), Watch(pid)
    held = watch.held()
    with watch.watching():
        outcomes, seconds = await timed_load(client, mix, args.clients, args.seconds, 2_000_000)
    after, held_after = await idle_slots(url), watch.held()
    fresh = [o for o in outcomes if o.place is None and o.error is None]
    say(f"{min(args.again, len(fresh))} of the requests that only the crowd had sent, one by one")
    again = [(o, await client.ask(mix.fresh(o.seed), stream=False)) for o in spaced(fresh, args.again)]
    known = [(o, alone[o.place]) for o in outcomes if o.place is not None and o.error is None]
    different = [(o, single_one) for o, single_one in (*known, *again) if not same(o, single_one.text)]
    await client.close()
    found: dict[str, Any] = {
        "clients": args.clients,
        "together": summary(outcomes, seconds),
        "alone": single,
        "compared": len(known) + len(again),
        "different": len(different),
        "first_errors": [o.error for o in (*alone, *outcomes, *(one for _, one in again)) if o.error][:5],
        "slots": {"before": before, "after": after},
        "held": {"before": held, "after": held_after},
        "memory_mib": {"most": max(watch.memory, default=0) >> 20, "growth": round(watch.growth / 2**20, 1)},
    }
    found["ratio"] = found["together"]["requests_per_second"] / max(single["requests_per_second"], 1e-9)
    found["leaks"] = leaks(found, watch)
    for outcome, one in different[:5]:
        say(f"different: {outcome.text!r} instead of {one.text!r}")
    return found


def leaks(found: dict[str, Any], watch: Watch) -> list[str]:
    """What did not come back to where it was."""
    after, held = found["slots"]["after"], found["held"]
    leaked = [name for name in ("running", "waiting", "cache") if after[name] > 0]
    leaked += [name for name in held["after"] if held["after"][name] > held["before"][name] + SLACK]
    return leaked + (["memory"] if watch.growth > MOST_GROWTH else [])


def spaced(outcomes: Sequence[Outcome], count: int) -> Sequence[Outcome]:
    """So many of them, from all over the time."""
    return outcomes[:: max(1, -(-len(outcomes) // count))] if count else []


async def versus(args: argparse.Namespace, url: str) -> dict[str, Any]:
    """The same chats for both servers, in turns."""
    mix = Mix(read_recordings([ROOT / "examples", *args.data]), 0)
    ours = Client(url, args.name, args.key, (args.min_tokens, args.max_tokens), args.clients)
    theirs = Client(args.peer, args.peer_model, args.peer_key, (args.min_tokens, args.max_tokens), args.clients)
    sides: dict[str, Client] = {"ours": ours, "theirs": theirs}
    single: dict[str, list[Outcome]] = {name: [] for name in sides}
    together: dict[str, list[Outcome]] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    for turn in range(args.rounds):
        for name, client in sides.items():
            seeds = range(1000 * turn, 1000 * turn + args.requests + 6)
            cases = [mix.of_length(seed, PEER_CLIP_SECONDS) for seed in seeds]
            single[name] += [await client.ask(case, stream=True) for case in cases[:6]][1:]  # the first wakes caches
            began = time.perf_counter()
            queue = iter(cases[6:])

            async def one(client: Client = client, queue: Iterator[Any] = queue, name: str = name) -> None:
                for case in queue:
                    together[name].append(await client.ask(case, stream=True))

            await asyncio.gather(*(one() for _ in range(args.clients)))
            seconds[name] += time.perf_counter() - began
            say(f"round {turn + 1}, {name}: {args.requests} requests in {time.perf_counter() - began:.1f} s")
    failed = [f"{name}: {one.error}" for name in sides for one in (*single[name], *together[name]) if one.error]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed, the first: {failed[0]}")
    found: dict[str, Any] = {
        name: {"alone": summary(single[name], 1.0), "together": summary(together[name], seconds[name])}
        for name in sides
    }
    for side in found.values():
        del side["alone"]["requests_per_second"], side["alone"]["seconds"]
    pairs = list(zip(single["ours"], single["theirs"], strict=True))
    for client in sides.values():
        await client.close()
    same_answers = sum(mine.text == other.text for mine, other in pairs)
    return found | {"same_answers": same_answers, "compared": len(pairs), **ratios(found["ours"], found["theirs"])}


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times quicker we are, by the medians."""
    alone, together = (
        [side[when]["first_token_ms"]["p50"] for side in (ours, theirs)] for when in ("alone", "together")
    )
    rates = [side["together"]["requests_per_second"] for side in (ours, theirs)]
    return {
        "ratio": rates[0] / rates[1],
        "first_token_ratio": alone[1] / alone[0],
        "first_token_ratio_together": together[1] / together[0],
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="what to serve")
    parser.add_argument("--name", default="mini", help="what it is called")
    parser.add_argument(
        "--serve-option", action="append", default=[], help="handed on to qwen2-audio serve; repeatable"
    )
    parser.add_argument("--url", help="a running server instead, as http://HOST:PORT/v1")
    parser.add_argument("--pid", type=int, help="its process, to watch for leaks")
    parser.add_argument("--key", help="its key")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], help="a folder with more recordings; repeatable"
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0, help="of all clients together")
    parser.add_argument("--alone", type=float, default=30.0, help="seconds of one client alone")
    parser.add_argument("--warm-up", type=float, default=20.0)
    parser.add_argument("--known", type=int, default=64, help="requests that come again and again")
    parser.add_argument("--again", type=int, default=64, help="fresh requests that are sent again alone")
    parser.add_argument("--max-tokens", type=int, default=32, help="of a chat's answer")
    parser.add_argument(
        "--min-tokens", type=int, default=0, help="the same, at least: long answers, as people get them"
    )
    parser.add_argument("--peer", help="another server with the same model, as http://HOST:PORT/v1: compare with it")
    parser.add_argument("--peer-model", default="mini", help="its name there")
    parser.add_argument("--peer-key")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side, with --peer")
    parser.add_argument("--requests", type=int, default=32, help="of all clients in a turn, with --peer")
    parser.add_argument("--log", type=argparse.FileType("w"), default=subprocess.DEVNULL, help="the server's log")
    parser.add_argument("--json", action="store_true", help="print one object")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is ended then, too
    with served(args) as (url, pid):
        found = asyncio.run(versus(args, url) if args.peer else crowd(args, url, pid))
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
    if not args.peer and (found["together"]["failed"] or found["different"] or found["leaks"] or found["first_errors"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
