"""Places are counted, memory is counted, and whoever finds none is told when to come again."""

from __future__ import annotations

import time

import pytest

from qwen2_audio.serving.backend import OverloadedError
from qwen2_audio.serving.waiting_room import WaitingRoom


def test_places_are_taken_until_the_answer_begins() -> None:
    room = WaitingRoom(2, 100)
    with room.enter() as first, room.enter():
        with pytest.raises(OverloadedError, match="2 answers are waiting"):
            room.enter()
        first.begin()
        with room.enter():
            assert (room.jobs, room.waiting) == (3, 2)
    assert (room.jobs, room.waiting) == (0, 0)


def test_a_place_is_given_back_when_its_job_fails() -> None:
    room = WaitingRoom(1, 100)
    with pytest.raises(ZeroDivisionError), room.enter() as place:
        place.weigh(50)
        _ = 1 / 0
    assert (room.jobs, room.waiting, room.nbytes) == (0, 0, 0)


def test_memory_has_a_bound_but_a_single_job_may_pass_it() -> None:
    room = WaitingRoom(9, 100)
    with room.enter() as large, room.enter() as small:
        large.weigh(1000)
        with pytest.raises(OverloadedError, match="MiB of recordings"):
            small.weigh(1)
        large.begin()
        small.weigh(100)
        assert room.nbytes == 100
    assert room.nbytes == 0


def test_how_long_to_stay_away_follows_how_quickly_the_queue_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    room = WaitingRoom(1000, 100)
    assert room.retry_after == 1.0
    for _ in range(11):  # one answer begins every 2 s
        with room.enter() as place:
            place.begin()
        now += 2.0
    now -= 2.0
    waiting = [room.enter() for _ in range(100)]
    for count, expected in ((0, 1.0), (5, 10.0), (100, 60.0)):
        while room.waiting < count:
            waiting[room.waiting].__enter__()
        assert room.retry_after == pytest.approx(expected)
