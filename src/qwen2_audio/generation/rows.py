"""The rows of a continuous batch: one key-value cache for each size of row, the rows in use at its front."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qwen2_audio.model.kv_cache import KVCache, PackedRows


@dataclass(slots=True)
class _Pool:
    cache: KVCache
    names: list[int] = field(default_factory=list)  # of row 0, 1, 2, ...


class CacheRows:
    """Rows by name; implements the scheduler's `Rows`.

    Rows of one size are neighbours in one cache, so that all that decode are attended to in one call. The cache of a size
    grows by a quarter and is freed when its last row closes. Where that would exceed the budget, the others give up their
    empty rows first, and it grows by no more than fits, but by one row at least.
    """

    def __init__(self, new_cache: Callable[[int, int], KVCache], budget: int = sys.maxsize) -> None:
        """Args: new_cache: makes an empty cache of (rows, capacity). budget: positions of all caches, rows in use or not."""
        self._budget = budget
        self._new_cache = new_cache
        self._pools: dict[int, _Pool] = {}
        self._room: dict[int, int] = {}

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._room)

    def open(self, name: int, room: int) -> None:
        pool = self._pools.get(room)
        used = len(pool.names) if pool else 0
        if pool is None or used == pool.cache.rows:
            more = self._growth(room, max(1, used // 4))
            if pool is None:
                pool = self._pools[room] = _Pool(self._new_cache(more, room))
            else:
                pool.cache.resize(used + more)
        pool.cache.truncate(used, 0)
        pool.names.append(name)
        self._room[name] = room

    def _growth(self, room: int, wanted: int) -> int:
        """How many rows of a size to add, of those wanted; makes place for them where there is little."""
        if self._allocated + wanted * room > self._budget:
            for pool in self._pools.values():
                if pool.cache.rows > len(pool.names):
                    pool.cache.resize(len(pool.names))
        return max(1, min(wanted, (self._budget - self._allocated) // room))

    @property
    def _allocated(self) -> int:
        return sum(pool.cache.rows * room for room, pool in self._pools.items())

    def close(self, name: int) -> None:
        room = self._room.pop(name)
        pool = self._pools[room]
        row, last = pool.names.index(name), len(pool.names) - 1
        if row != last:  # the last row moves into the gap
            pool.cache.copy(row, pool.cache, last, pool.cache.lengths[last])
            pool.names[row] = pool.names[last]
        pool.names.pop()
        pool.cache.truncate(last, 0)
        if not pool.names:
            del self._pools[room]
        elif pool.cache.rows > 2 * last + 2:
            pool.cache.resize(last + max(1, last // 4))

    def resize(self, name: int, room: int) -> None:
        old, row = self._find(name)
        self.open(-name, room)
        new, at = self._find(-name)
        new.cache.copy(at, old.cache, row, old.cache.lengths[row])
        self.close(name)
        self._room[name] = self._room.pop(-name)
        new.names[at] = name

    def copy(self, source: int, name: int, length: int) -> None:
        (old, old_row), (new, row) = self._find(source), self._find(name)
        new.cache.copy(row, old.cache, old_row, length)

    def pack(self, work: Sequence[tuple[int, int]]) -> tuple[PackedRows, list[int]]:
        """Rows for one forward, and the places in `work` in the order in which their tokens must be laid end to end.

        Args:
            work: pairs of a name and its number of new tokens.
        """
        places = {name: (self._room[name], self._find(name)[1]) for name, _ in work}
        order = sorted(range(len(work)), key=lambda at: (places[work[at][0]], at))
        parts: list[tuple[KVCache, int, int]] = []
        end, single = (0, -1), False
        for name, count in (work[at] for at in order):
            room, row = places[name]
            if single and count == 1 and (room, row) == end:  # decoding neighbours
                cache, first, many = parts[-1]
                parts[-1] = (cache, first, many + 1)
            else:
                parts.append((self._pools[room].cache, row, 1))
            end, single = (room, row + 1), count == 1
        return PackedRows(parts), order

    def _find(self, name: int) -> tuple[_Pool, int]:
        pool = self._pools[self._room[name]]
        return pool, pool.names.index(name)
