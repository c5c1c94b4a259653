"""Rows of a continuous batch: what is allocated stays within the budget."""

from __future__ import annotations

from typing import cast

import pytest

from qwen2_audio.generation.rows import CacheRows
from qwen2_audio.model.kv_cache import KVCache


class FakeCache:
    """A cache without tensors."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.lengths = [0] * rows
        self.capacity = capacity

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def resize(self, rows: int) -> None:
        self.lengths = [*self.lengths[:rows], *([0] * (rows - self.rows))]

    def truncate(self, row: int, length: int) -> None:
        self.lengths[row] = min(self.lengths[row], length)

    def copy(self, row: int, source: FakeCache, source_row: int, length: int) -> None:
        self.lengths[row] = length


class Bench:
    def __init__(self, budget: int) -> None:
        self.caches: dict[int, FakeCache] = {}
        self.rows = CacheRows(self.new, budget)

    def new(self, rows: int, capacity: int) -> KVCache:
        self.caches[capacity] = FakeCache(rows, capacity)
        return cast(KVCache, self.caches[capacity])

    @property
    def allocated(self) -> int:
        return sum(cache.rows * cache.capacity for cache in self.caches.values())


def test_empty_rows_of_one_size_make_way_for_another() -> None:
    bench = Bench(32 * 1024)
    for name in range(1, 33):
        bench.rows.open(name, 1024)
    assert bench.allocated == 32 * 1024
    for name in range(1, 15):
        bench.rows.close(name)
    assert bench.caches[1024].rows == 32  # half of it is in use, so it keeps its size
    for name in range(101, 157):
        bench.rows.open(name, 256)
        assert bench.allocated <= 32 * 1024
    assert bench.rows.count == 18 + 56 and bench.allocated == 18 * 1024 + 56 * 256


@pytest.mark.parametrize(("budget", "rows"), [(64, 15), (14, 14), (12, 13)])
def test_a_size_grows_by_a_quarter_or_what_fits_but_by_one_row_at_least(budget: int, rows: int) -> None:
    bench = Bench(budget)
    for name in range(1, 13):
        bench.rows.open(name, 1)
    bench.caches[1].resize(12)
    bench.rows.open(13, 1)
    assert bench.caches[1].rows == rows
