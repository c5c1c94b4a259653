"""The engine's process dies, fails, hangs or is slow: everyone is told, nothing is left behind, and it is started again."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from qwen2_audio.errors import CheckpointError, UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import Conversation, TextPart
from qwen2_audio.serving import engine_link, local
from qwen2_audio.serving.backend import Delta, EngineLostError, Job, OverloadedError
from qwen2_audio.serving.local import LocalBackend, LocalConfig
from qwen2_audio.serving.supervisor import Pauses
from tests.serving.fake_engine import BROKEN, DEADLY, FOREVER, REFUSED, SCRIPT, SILENT, run_fake_engine

T = TypeVar("T")
LIMIT = 60.0
"""Seconds for anything to happen; the machine may be busy."""
HELLO = Conversation().user(TextPart("hello"))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, LIMIT))


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> LocalConfig:
    pauses = Pauses(first=0.05, longest=0.2)
    return LocalConfig(str(folder), "tiny", ((SCRIPT, str(tmp_path)),), drain_timeout=0.1, pauses=pauses)


def job(seed: int | None = None, tokens: int = 3) -> Job:
    return Job(HELLO, GenerationOptions(max_new_tokens=tokens, seed=seed), "tiny")


async def whole(backend: LocalBackend, asked: Job) -> str:
    return "".join([delta.text async for delta in backend.generate(asked)])


async def begun(backend: LocalBackend) -> asyncio.Task[Delta]:
    """A task that waits for the second delta of an answer that has none."""
    answer = backend.generate(job(FOREVER)).__aiter__()
    assert (await anext(answer)).text == "A"
    return asyncio.create_task(anext(answer))  # type: ignore[arg-type]


async def until_ready(backend: LocalBackend) -> None:
    while not backend.ready:
        await asyncio.sleep(0.01)


async def until_idle(backend: LocalBackend) -> None:
    while any(backend.gauges()[name] for name in ("requests_running", "requests_waiting", "cache_usage")):
        await asyncio.sleep(0.01)


def test_a_killed_process_ends_its_answers_at_once_and_is_started_again(served: LocalConfig) -> None:
    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        running = [await begun(backend) for _ in range(3)]
        silent = asyncio.create_task(whole(backend, job(SILENT)))
        await asyncio.sleep(0.05)
        pid = backend.engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ends = await asyncio.gather(*running, silent, return_exceptions=True)
        assert [type(end) for end in ends] == [EngineLostError] * 4
        assert "exit code -9" in str(ends[0])
        assert not backend.ready
        with pytest.raises(EngineLostError, match="try again"):
            await whole(backend, job())
        await until_ready(backend)
        assert await whole(backend, job()) == "AAA"
        assert backend.engine_pid != pid
        assert backend.gauges() == {
            "requests_running": 0, "requests_waiting": 0, "cache_usage": 0.0, "engine_restarts": 1
        }  # fmt: skip
        await backend.close()

    run(scenario())


def test_a_process_that_hangs_is_killed_and_started_again(
    served: LocalConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        backend = LocalBackend(replace(served, engine_timeout=0.4), run_fake_engine)
        await backend.start()
        await asyncio.sleep(0.6)  # nobody asked for anything: silence is no hanging
        assert await whole(backend, job()) == "AAA"
        pid = backend.engine_pid
        with pytest.raises(EngineLostError, match="exit code -9"):
            await whole(backend, job(SILENT))
        await until_ready(backend)
        assert await whole(backend, job()) == "AAA"
        assert backend.engine_pid != pid and backend.gauges()["engine_restarts"] == 1
        await backend.close()

    run(scenario())
    assert "has done nothing for 0 s; it is killed" in caplog.text


@pytest.mark.parametrize("seed", [DEADLY, BROKEN])
def test_a_request_that_kills_the_engine_gets_an_error_and_others_go_on(
    served: LocalConfig, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        with pytest.raises(EngineLostError):
            await whole(backend, job(seed))
        await until_ready(backend)
        assert await whole(backend, job()) == "AAA"
        await backend.close()

    run(scenario())
    assert ("the engine failed with RuntimeError" in caplog.text) == (seed == BROKEN)
    assert "hello" not in caplog.text


def test_starting_again_goes_on_until_it_succeeds(served: LocalConfig, tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        (tmp_path / "fail").write_text("3")
        with pytest.raises(EngineLostError):
            await whole(backend, job(DEADLY))
        await until_ready(backend)
        assert backend.gauges()["engine_restarts"] == 3  # starts 2 and 3 fail, 4 succeeds
        assert await whole(backend, job()) == "AAA"
        await backend.close()

    run(scenario())


@pytest.mark.parametrize(("name", "error"), [("fail", CheckpointError), ("die", EngineLostError)])
def test_what_cannot_be_loaded_is_said_by_start(
    served: LocalConfig, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    (tmp_path / name).write_text("1")
    threads = threading.active_count()
    backend = LocalBackend(served, run_fake_engine)
    with pytest.raises(error):
        run(backend.start())
    assert threading.active_count() == threads
    assert not backend.ready


@pytest.mark.parametrize("missing", ["files", "threads"])
def test_what_the_machine_lacks_is_waited_for(
    served: LocalConfig, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Nothing of an attempt that failed is left."""
    failures = iter([True, False, False])

    class Thread(threading.Thread):
        def start(self) -> None:
            if self.name == "engine-reader" and next(failures):
                raise RuntimeError("can't start new thread")
            super().start()

    def pipe(context: Any) -> Any:
        if next(failures):
            raise OSError(errno.EMFILE, "Too many open files")
        return make(context)

    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        context = multiprocessing.get_context("spawn")
        if missing == "threads":
            monkeypatch.setattr(engine_link.threading, "Thread", Thread)
        else:
            monkeypatch.setattr(type(context), "Pipe", pipe)
        before = len(multiprocessing.active_children())
        with pytest.raises(EngineLostError):
            await whole(backend, job(DEADLY))
        await until_ready(backend)
        assert backend.gauges()["engine_restarts"] == 2
        assert len(multiprocessing.active_children()) == before
        assert await whole(backend, job()) == "AAA"
        await backend.close()

    make = type(multiprocessing.get_context("spawn")).Pipe
    run(scenario())


def test_a_refused_request_harms_nobody(served: LocalConfig) -> None:
    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        with pytest.raises(UsageError, match="no such schema"):
            await whole(backend, job(REFUSED))
        assert await whole(backend, job(tokens=5)) == "AAAAA"
        await backend.close()

    run(scenario())


def test_waiting_for_the_prompt_to_be_rendered_has_an_end(served: LocalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        backend = LocalBackend(replace(served, renderers=1, queue_timeout=0.3), run_fake_engine)
        await backend.start()
        free = threading.Event()
        usual = local.render
        monkeypatch.setattr(local, "render", lambda processor, prompt: free.wait(30) and usual(processor, prompt))
        with pytest.raises(OverloadedError, match=r"could not begin within 0\.3 s"):
            await whole(backend, job())
        free.set()
        await until_idle(backend)
        assert await whole(backend, job()) == "AAA"
        await backend.close()

    run(scenario())


def test_too_much_waiting_is_refused_and_waiting_has_an_end(served: LocalConfig) -> None:
    async def scenario() -> None:
        backend = LocalBackend(replace(served, max_queue=2, queue_timeout=0.5), run_fake_engine)
        await backend.start()
        waiting = [asyncio.create_task(whole(backend, job(SILENT))) for _ in range(2)]
        while backend.gauges()["requests_running"] < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="2 answers are waiting") as refused:
            await whole(backend, job())
        assert 1 <= refused.value.retry_after <= 60
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(end)[:37] for end in ends] == ["the answer could not begin within 0.5"] * 2
        await until_idle(backend)  # they were given up in the engine, too
        assert await whole(backend, job()) == "AAA"
        await backend.close()

    run(scenario())


def test_closing_the_iterator_or_cancelling_its_reader_frees_the_engine(served: LocalConfig) -> None:
    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        answer = backend.generate(job(FOREVER))
        assert (await anext(answer)).text == "A"  # type: ignore[call-overload]
        assert backend.gauges()["requests_running"] == 1
        await answer.aclose()  # type: ignore[attr-defined]
        await until_idle(backend)
        reader = await begun(backend)
        silent = asyncio.create_task(whole(backend, job(SILENT)))
        await asyncio.sleep(0.05)
        for task in (reader, silent):
            task.cancel()
        ends = await asyncio.gather(reader, silent, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        await until_idle(backend)
        await backend.close()

    run(scenario())


def test_closing_ends_what_runs_and_leaves_nothing_behind(served: LocalConfig) -> None:
    me = psutil.Process()
    children = {child.pid for child in me.children()}

    async def scenario() -> None:
        backend = LocalBackend(served, run_fake_engine)
        await backend.start()
        running = await begun(backend)
        await backend.close()
        with pytest.raises(EngineLostError, match="told to end"):
            await running
        assert not backend.ready
        with pytest.raises(EngineLostError):
            await whole(backend, job())
        await backend.close()  # twice is harmless

    run(scenario())  # what a process keeps for good (the resource tracker) is there from now on
    kept = {child.pid for child in me.children()}
    assert len(kept - children) <= 1
    before = me.num_fds(), threading.active_count()
    for _ in range(2):
        run(scenario())
    assert (me.num_fds(), threading.active_count()) == before
    assert {child.pid for child in me.children()} == kept


def test_closing_lets_short_answers_come_to_their_end(served: LocalConfig) -> None:
    async def scenario() -> None:
        backend = LocalBackend(replace(served, drain_timeout=LIMIT), run_fake_engine)
        await backend.start()
        answer = asyncio.create_task(whole(backend, job(tokens=50)))
        while not backend.gauges()["requests_waiting"]:
            await asyncio.sleep(0)
        closing = asyncio.create_task(backend.close())
        assert await answer == "A" * 50
        await closing

    run(scenario())


PARENT = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from qwen2_audio.serving.local import LocalBackend, LocalConfig
from tests.serving.fake_engine import SCRIPT, run_fake_engine

async def main():
    backend = LocalBackend(LocalConfig(sys.argv[1], "tiny", ((SCRIPT, sys.argv[2]),)), run_fake_engine)
    await backend.start()
    print(backend.engine_pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_with_the_front(folder: Path, tmp_path: Path, how: signal.Signals) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(program), str(folder), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert psutil.pid_exists(pid)
            parent.send_signal(how)
            parent.wait(LIMIT)
            limit = time.monotonic() + LIMIT
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < limit, "the engine's process lives on"
                time.sleep(0.02)
        finally:
            parent.kill()
