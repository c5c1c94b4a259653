"""Prefill and decoding with the cache give the logits of an uncached forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qwen2_audio.model.kv_cache import KVCache, PackedRows
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import tiny_config, tiny_model

LENGTHS = [5, 17, 9]


@pytest.fixture(scope="module", params=[True, False], ids=["gqa", "mha"])
def model(request: pytest.FixtureRequest) -> Qwen2Audio:
    return tiny_model(tiny_config(seed=1, gqa=request.param), seed=1)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def uncached(model: Qwen2Audio, rows: list[Tensor]) -> list[Tensor]:
    return [model(row, [len(row)]) for row in rows]


@torch.inference_mode()
def fill(model: Qwen2Audio, cache: KVCache | PackedRows, parts: list[Tensor]) -> list[Tensor]:
    lengths = [len(part) for part in parts]
    return list(model(torch.cat(parts), lengths, cache=cache).split(lengths))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("capacity", [1, 24, 400])
@pytest.mark.parametrize("rows", [1, 3])
def test_prefill_then_decode(model: Qwen2Audio, rows: int, capacity: int) -> None:
    """A small capacity grows."""
    whole = [tokens(length + 8, seed) for seed, length in enumerate(LENGTHS[:rows])]
    wanted = uncached(model, whole)
    cache = model.new_cache(rows, capacity)
    got = fill(model, cache, [row[:-8] for row in whole])
    for step in range(8, 0, -1):
        new = fill(model, cache, [row[-step][None] for row in whole])
        got = [torch.cat(pair) for pair in zip(got, new, strict=True)]
    for mine, other in zip(got, wanted, strict=True):
        close(mine, other)
    assert cache.lengths == [len(row) for row in whole]


def test_chunks_of_unlike_length(model: Qwen2Audio) -> None:
    """A second turn: several new tokens behind what is cached, some rows with one."""
    whole = [tokens(20, seed) for seed in range(3)]
    cache = model.new_cache(3, 8)
    fill(model, cache, [row[:n] for row, n in zip(whole, LENGTHS, strict=True)])
    got = fill(model, cache, [row[n : n + k] for row, n, k in zip(whole, LENGTHS, (15, 1, 4), strict=True)])
    for mine, other, n, k in zip(got, uncached(model, whole), LENGTHS, (15, 1, 4), strict=True):
        close(mine, other[n : n + k])


def test_rows_are_added_dropped_and_copied(model: Qwen2Audio) -> None:
    whole = [tokens(n + 1, n) for n in LENGTHS]
    cache = model.new_cache(3, 32)
    fill(model, cache, [row[:-1] for row in whole])
    cache.resize(4)
    cache.copy(3, cache, 0, LENGTHS[0])
    cache.copy(0, cache, 2, LENGTHS[2])
    cache.resize(1)
    assert (cache.rows, cache.lengths) == (1, [LENGTHS[2]])
    close(fill(model, cache, [whole[2][-1:]])[0], uncached(model, [whole[2]])[0][-1:])
    cache.resize(2)
    cache.copy(1, cache, 0, 3)
    close(fill(model, cache, [whole[2][:0], whole[2][3:5]])[1], uncached(model, [whole[2]])[0][3:5])


def test_rows_of_several_caches_are_one_batch(model: Qwen2Audio) -> None:
    """Decoding neighbours, a single row, a chunk of a prompt, a row in between that rests."""
    whole = [tokens(20, seed) for seed in range(5)]
    small, large = model.new_cache(4, 24), model.new_cache(1, 64)
    fill(model, small, [row[:n] for row, n in zip(whole[:4], (5, 9, 3, 7), strict=True)])
    fill(model, large, [whole[4][:6]])
    rows = PackedRows([(small, 0, 2), (large, 0, 1), (small, 3, 1)])
    assert rows.lengths == [5, 9, 6, 7]
    got = fill(model, rows, [whole[0][5:6], whole[1][9:10], whole[4][6:17], whole[3][7:8]])
    wanted = uncached(model, [whole[0], whole[1], whole[4], whole[3]])
    for mine, other, at in zip(got, wanted, (slice(5, 6), slice(9, 10), slice(6, 17), slice(7, 8)), strict=True):
        close(mine, other[at])
    assert (small.lengths, large.lengths) == ([6, 10, 3, 8], [17])


def test_rows_of_a_pool_do_not_grow_by_themselves(model: Qwen2Audio) -> None:
    cache = model.new_cache(2, 8)
    with pytest.raises(RuntimeError, match="8 positions"):
        fill(model, PackedRows([(cache, 1, 1)]), [tokens(9)])
    assert cache.lengths == [0, 0]


def test_truncate_forgets(model: Qwen2Audio) -> None:
    kept, dropped, after = tokens(7, 1), tokens(6, 2), tokens(3, 3)
    cache = model.new_cache(1, 32)
    fill(model, cache, [torch.cat([kept, dropped])])
    cache.truncate(0, 7)
    cache.truncate(0, 100)
    assert cache.lengths == [7]
    close(fill(model, cache, [after])[0], uncached(model, [torch.cat([kept, after])])[0][7:])


def test_logits_only_where_asked(model: Qwen2Audio) -> None:
    ids = tokens(12)
    at = torch.tensor([11, 3])
    with torch.inference_mode():
        close(model(ids, [5, 7], logits_at=at), model(ids, [5, 7])[at])


def test_a_cache_survives_running_out_of_memory_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tiny_model().new_cache(1, 4)
    zeros, calls = torch.Tensor.new_zeros, []

    def second_fails(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return zeros(*args)

    monkeypatch.setattr(torch.Tensor, "new_zeros", second_fails)
    with pytest.raises(RuntimeError):
        cache.reserve([5])
    cache.reserve([5])
    seen = cache.attend(0, torch.ones(5, 4, 16), torch.ones(5, 2, 16), torch.ones(5, 2, 16), [5])
    assert seen.shape == (5, 4, 16)
