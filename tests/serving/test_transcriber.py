"""Windows through a backend: in order, few at a time, again where the engine was busy, nothing left running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.longform.listening import Question
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.speech_windows import Window
from qwen2_audio.serving import transcriber as module
from qwen2_audio.serving.backend import Delta, Job, OverloadedError
from qwen2_audio.serving.transcriber import WINDOWS_AT_ONCE, ServedTranscriber
from tests.serving.fake_backend import CARDS, FakeBackend, parts_of, seconds_of
from tests.serving.recordings import EXAMPLES
from tests.tiny import sound

LIMIT = 60.0
Wave = NDArray[np.float32]


@pytest.fixture(scope="module")
def sentence() -> Wave:
    return load_audio(EXAMPLES / "sentence.flac")


async def blocks(wave: Wave, sentences: int) -> AsyncGenerator[Wave, None]:
    for _ in range(sentences):
        yield np.concatenate([wave, np.zeros(2 * SAMPLE_RATE, np.float32)])


def seconds(job: Job) -> float:
    return seconds_of(parts_of(job.prompt)[0])  # type: ignore[arg-type]


def segments(backend: FakeBackend, recording: AsyncIterator[Wave]) -> list[Segment]:
    async def run() -> list[Segment]:
        listener = ServedTranscriber(backend, CARDS[0], Question())
        return [found.segment async for found in listener.segments(recording)]

    return asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_in_order_and_a_few_at_a_time(sentence: Wave) -> None:
    asked: list[Job] = []

    def answer(job: Job) -> list[str]:
        asked.append(job)
        return [f"{len(asked)}"]

    backend = FakeBackend(answer=answer, delay=0.001)
    found = segments(backend, blocks(sentence, 20))
    assert [segment.text for segment in found] == [str(n + 1) for n in range(20)]
    assert [segment.start for segment in found] == sorted(segment.start for segment in found)
    assert 1 < backend.most_running <= WINDOWS_AT_ONCE
    assert backend.finished == 20


def test_running_on_is_asked_again_by_halves(sentence: Wave) -> None:
    def answer(job: Job) -> list[str]:
        return [f"word{n} " for n in range(200)] if seconds(job) > 3 else [f"{seconds(job):.2f}"]

    backend = FakeBackend(answer=answer)
    found = segments(backend, blocks(sentence, 4))
    whole = [seconds(job) for job in backend.jobs if seconds(job) > 3]
    assert len(whole) == 4 and len(found) >= 8
    assert sum(float(segment.text) for segment in found) == pytest.approx(sum(whole), abs=0.1)
    assert [segment.start for segment in found] == sorted(segment.start for segment in found)


def test_closing_ends_everything(sentence: Wave) -> None:
    backend = FakeBackend(delay=0.005)

    async def run() -> None:
        listener = ServedTranscriber(backend, CARDS[0], Question())
        async with aclosing(listener.segments(blocks(sentence, 30))) as found:
            await anext(found)
        assert backend.running == 0

    asyncio.run(asyncio.wait_for(run(), LIMIT))
    assert len(backend.jobs) < 30


class Busy(FakeBackend):
    """Refuses every second job."""

    async def generate(self, job: Job) -> AsyncIterator[Delta]:
        self.jobs.append(job)
        if len(self.jobs) % 2 == 0:
            raise OverloadedError("busy", retry_after=0.001)
        async for delta in super().generate(job):
            yield delta


def test_a_busy_engine_is_asked_again(sentence: Wave) -> None:
    assert len(segments(Busy(answer=lambda job: ["so"]), blocks(sentence, 4))) == 4


def test_an_engine_that_never_answers_is_told_at_once(sentence: Wave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART_SECONDS", 1000.0)
    backend = FakeBackend(error=OverloadedError("busy", retry_after=1000.0))
    with pytest.raises(OverloadedError):
        segments(backend, blocks(sentence, 3))


class Small(FakeBackend):
    """Has place for a few jobs."""

    places: int = 3
    refused: int = 0

    async def generate(self, job: Job) -> AsyncIterator[Delta]:
        if self.running >= self.places:
            self.refused += 1
            raise OverloadedError("busy", retry_after=0.001)
        async for delta in super().generate(job):
            yield delta


def test_an_idle_engine_with_little_room_hears_a_long_recording(sentence: Wave) -> None:
    backend = Small(answer=lambda job: [f"{len(backend.jobs)}"], delay=0.05)
    assert len(segments(backend, blocks(sentence, 12))) == 12
    assert 0 < backend.refused < 100 and backend.most_running == backend.places


def test_a_later_window_is_given_up_after_a_few_attempts(sentence: Wave) -> None:
    class Once(FakeBackend):
        async def generate(self, job: Job) -> AsyncIterator[Delta]:
            self.jobs.append(job)
            if len(self.jobs) > 1:
                raise OverloadedError("busy", retry_after=0.001)
            async for delta in super().generate(job):
                yield delta

    with pytest.raises(OverloadedError):
        segments(Once(delay=0.01), blocks(sentence, 3))


def test_the_window_after_halves_is_compared_with_what_was_kept(sentence: Wave) -> None:
    """Speech without a pause is cut; what begins the second window was said at the end of the first one's halves."""

    def answer(job: Job) -> list[str]:
        if seconds(job) == 4.0:
            return [f"word{n} " for n in range(200)]
        return ["repetition ends"] if seconds(job) == 3.5 else ["the repetition"]

    class Two(ServedTranscriber):
        async def _windows(self, blocks: AsyncIterable[Wave]) -> AsyncGenerator[Window, None]:
            for start in (0, 4):
                first = start * SAMPLE_RATE
                yield Window(first, sound(4.0 - start / 8), (first, first + 56_000), 0.9, joined=start > 0)

    async def run() -> list[str]:
        listener = Two(FakeBackend(answer=answer), CARDS[0], Question())
        return [found.segment.text async for found in listener.segments(blocks(sentence, 0))]

    assert asyncio.run(asyncio.wait_for(run(), LIMIT))[-1] == "ends"


def test_a_recording_that_breaks_off(sentence: Wave) -> None:
    async def broken() -> AsyncGenerator[Wave, None]:
        async for block in blocks(sentence, 2):
            yield block
        raise AudioError("cut short")

    backend = FakeBackend()
    with pytest.raises(AudioError, match="cut short"):
        segments(backend, broken())
    assert backend.running == 0


def test_log_probabilities_and_options(sentence: Wave) -> None:
    backend = FakeBackend()

    async def run() -> None:
        question = Question("Say it.", GenerationOptions(logprobs=0, temperature=0.5))
        listener = ServedTranscriber(backend, CARDS[0], question)
        (found,) = [one async for one in listener.segments(blocks(sentence, 1))]
        assert found.segment.text == f"[{seconds(backend.jobs[0]):.1f} s] Say it."
        assert found.segment.logprob == -0.5 and len(found.logprobs) == 3
        assert listener.samples == len(sentence) + 2 * SAMPLE_RATE
        assert listener.completion_tokens == 4 and listener.prompt_tokens > 25  # the end is a token too

    asyncio.run(asyncio.wait_for(run(), LIMIT))
    assert backend.jobs[0].options.temperature == 0.5 and backend.jobs[0].options.stop_loops
