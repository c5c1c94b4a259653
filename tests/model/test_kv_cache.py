"""Prefill and decoding with the cache give the logits of an uncached forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qwen2_audio.model.kv_cache import KVCache
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
def fill(model: Qwen2Audio, cache: KVCache, parts: list[Tensor]) -> list[Tensor]:
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


def test_keep_drops_rows(model: Qwen2Audio) -> None:
    whole = [tokens(n + 1, n) for n in LENGTHS]
    cache = model.new_cache(3, 32)
    fill(model, cache, [row[:-1] for row in whole])
    cache.keep([2, 0])
    assert (cache.rows, cache.lengths) == (2, [9, 5])
    got = fill(model, cache, [whole[2][-1:], whole[0][-1:]])
    for mine, other in zip(got, uncached(model, [whole[2], whole[0]]), strict=True):
        close(mine, other[-1:])


def test_truncate_forgets(model: Qwen2Audio) -> None:
    kept, dropped, after = tokens(7, 1), tokens(6, 2), tokens(3, 3)
    cache = model.new_cache(1, 32)
    fill(model, cache, [torch.cat([kept, dropped])])
    cache.truncate(0, 7)
    cache.truncate(0, 100)
    assert cache.lengths == [7]
    close(fill(model, cache, [after])[0], uncached(model, [torch.cat([kept, after])])[0][7:])


def test_join(model: Qwen2Audio) -> None:
    whole = [tokens(n + 1, n) for n in LENGTHS]
    first, second = model.new_cache(1, 40), model.new_cache(2, 18)
    fill(model, first, [whole[0][:-1]])
    fill(model, second, [row[:-1] for row in whole[1:]])
    joined = KVCache.join(model.config.text, [first, second], room=4)
    assert joined.lengths == LENGTHS
    assert joined.capacity >= max(LENGTHS) + 4
    got = fill(model, joined, [row[-1:] for row in whole])
    for mine, other in zip(got, uncached(model, whole), strict=True):
        close(mine, other[-1:])


def test_logits_only_where_asked(model: Qwen2Audio) -> None:
    ids = tokens(12)
    at = torch.tensor([11, 3])
    with torch.inference_mode():
        close(model(ids, [5, 7], logits_at=at), model(ids, [5, 7])[at])


def test_a_cache_survives_running_out_of_memory_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tiny_model().new_cache(1, 4)
    pad, calls = torch.nn.functional.pad, []

    def second_fails(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return pad(*args)

    monkeypatch.setattr(torch.nn.functional, "pad", second_fails)
    with pytest.raises(RuntimeError):
        cache.reserve([5])
    cache.reserve([5])
    keys, values = cache.store(0, torch.ones(5, 2, 16), torch.ones(5, 2, 16), [5])
    assert min(keys.shape[2], values.shape[2]) >= 5
