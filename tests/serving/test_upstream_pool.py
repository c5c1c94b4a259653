"""Which engine is asked, and for how long one that fails is left alone."""

from __future__ import annotations

from qwen2_audio.remote.address import Address
from qwen2_audio.remote.models import RemoteModel
from qwen2_audio.remote.wire import VLLM
from qwen2_audio.serving.upstream_pool import LONGEST_PAUSE, Engine, Pool


class TestPool:
    """Decisions, on a clock of their own."""

    def setup_method(self) -> None:
        self.now = 0.0
        model = RemoteModel("m", VLLM)
        self.a, self.b = (Engine(Address(f"http://{name}/v1"), (model,), reachable=True) for name in "ab")
        self.pool = Pool([self.a, self.b], lambda: self.now)

    def test_equals_take_turns_and_the_idler_comes_first(self) -> None:
        assert {self.pool.choose("m"), self.pool.choose("m")} == {self.a, self.b}
        self.a.outstanding = 1
        assert [self.pool.choose("m") for _ in range(3)] == [self.b] * 3
        assert self.pool.choose("m", {self.b}) is self.a
        assert self.pool.choose("m", {self.a, self.b}) is None and self.pool.choose("n") is None

    def test_pauses_double_up_to_a_limit_and_end_with_an_answer(self) -> None:
        pauses = []
        for _ in range(8):
            self.pool.failed(self.a)
            pauses.append(self.a.paused_until - self.now)
            assert self.pool.choose("m") is self.b
            self.now = self.a.paused_until
            assert self.pool.usable(self.a)
        assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
        self.pool.worked(self.a)
        self.pool.failed(self.a)
        assert self.a.paused_until - self.now == 1

    def test_what_fails_together_counts_once(self) -> None:
        for _ in range(6):
            self.pool.failed(self.a)
        assert (self.a.failures, self.a.paused_until - self.now) == (1, 1)
        for _ in range(2000):
            self.now = self.a.paused_until
            self.pool.failed(self.a)
        assert self.a.paused_until - self.now == LONGEST_PAUSE

    def test_unreachable_ones_are_left_out(self) -> None:
        self.a.reachable = False
        assert [self.pool.choose("m") for _ in range(3)] == [self.b] * 3
