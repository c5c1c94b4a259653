"""Compiled decode steps give what the plain layers give, for any rows, and are left out where they do not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen2_audio import load
from qwen2_audio.checkpoints.quantize import put_into_int8, spread, spreader, to_int8
from qwen2_audio.kernels import steps
from qwen2_audio.kernels.packing import align_linears, pack_linears
from qwen2_audio.kernels.steps import MOST_ROWS, Steps, attach_steps
from qwen2_audio.model.kv_cache import KVCache, PackedRows
from qwen2_audio.model.linear import Linear
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import VOCAB, sound, tiny_config, tiny_model

pytest.importorskip("numba")
from qwen2_audio.kernels import decode_cpu, spreading

pytestmark = pytest.mark.skipif(not decode_cpu.can_share_work(), reason="numba finds no OpenMP")
TOLERANCE = 1e-4


def both(seed: int = 0, *, gqa: bool = True, tied: bool = False, int8: bool = False) -> tuple[Qwen2Audio, Qwen2Audio]:
    """The same model plain and with compiled steps."""
    plain = tiny_model(tiny_config(seed, gqa=gqa, tied=tied), seed)
    if int8:
        put_into_int8(plain)
    pack_linears(plain)
    quick = copy.copy(plain)
    quick._modules = {**plain._modules, "language_model": copy.copy(plain.language_model)}
    attach_steps(quick.language_model)
    assert isinstance(quick.language_model.steps, Steps) and plain.language_model.steps is None
    return plain, quick


def filled(model: Qwen2Audio, lengths: list[int], seed: int) -> KVCache:
    """A cache with rows of these lengths (0: nothing yet), the same for the same seed."""
    cache = model.new_cache(len(lengths), max(lengths) + 3)
    for tensor in (*cache._keys, *cache._values):
        tensor.normal_(generator=torch.Generator().manual_seed(seed))
    cache.lengths = list(lengths)
    return cache


def agree(plain: Qwen2Audio, quick: Qwen2Audio, lengths: list[int], seed: int, tolerance: float = TOLERANCE) -> None:
    """Three steps in a row, each of which sees what those before it wrote."""
    draw = torch.Generator().manual_seed(seed)
    caches = [filled(model, lengths, seed) for model in (plain, quick)]
    for step in range(3):
        ids = torch.randint(VOCAB, (len(lengths),), generator=draw)
        with torch.inference_mode():
            expected, got = (
                model(ids, [1] * len(ids), cache=cache) for model, cache in zip((plain, quick), caches, strict=True)
            )
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
        assert expected.std() > 0.5 and caches[1].lengths == [length + step + 1 for length in lengths]


@pytest.mark.parametrize(
    ("seed", "gqa", "tied"), [(0, True, False), (1, False, True), (2, True, True), (3, False, False)]
)
def test_steps_equal_the_plain_layers(seed: int, gqa: bool, tied: bool) -> None:
    plain, quick = both(seed, gqa=gqa, tied=tied)
    for lengths in ([0], [300], [600], [300, 290, 7], [5, 1], [7, 0, 129], [3] * 4, [9, 2, 2, 40, 8], list(range(17))):
        agree(plain, quick, lengths, seed)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=9), seed=st.integers(0, 1000))
def test_any_rows(lengths: list[int], seed: int) -> None:
    agree(*pairs(), lengths, seed)


_made: list[tuple[Qwen2Audio, Qwen2Audio]] = []


def pairs() -> tuple[Qwen2Audio, Qwen2Audio]:
    if not _made:
        _made.append(both())
    return _made[0]


@pytest.fixture
def in_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether int8 is multiplied as bytes, as CPUs do that can, and once more as on those that cannot."""
    if request.param and not decode_cpu.multiplies_bytes():
        pytest.skip("this CPU has no AVX-512 VNNI")
    monkeypatch.setattr(decode_cpu, "multiplies_bytes", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("rows", "in_bytes"),
    [*((rows, True) for rows in (1, 3, 4, 5, 17)), *((rows, False) for rows in (1, 3, 4))],  # of more torch rounds, too
    indirect=["in_bytes"],
)
def test_int8_multiplies_by_the_rounded_weights_and_rounds_nothing_else(rows: int, in_bytes: bool) -> None:
    _, quick = both(1, int8=True)
    assert quick.language_model.steps is not None and quick.language_model.steps._head._in_bytes is in_bytes
    rounded = tiny_model(tiny_config(1), 1)
    for layer in rounded.language_model.modules():
        if isinstance(layer, Linear):
            weight = to_int8(layer.weight)
            layer.weight.data = spread(weight.rows * weight.scales[:, None], spreader(layer.in_features))
    agree(rounded, quick, [11 + 7 * row for row in range(rows)], 5, tolerance=1e-3)


def test_int8_of_more_rows_is_the_plain_one_where_bytes_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cpu, "multiplies_bytes", lambda: False)
    agree(*both(1, int8=True), [11, 18, 25, 32, 39, 46], 5, tolerance=1e-3)


def test_rows_of_several_caches() -> None:
    plain, quick = pairs()
    got = []
    for model in (plain, quick):
        near, far = filled(model, [4, 9, 2], 1), filled(model, [30, 31], 2)
        rows = PackedRows([(near, 1, 2), (far, 0, 1)])
        with torch.inference_mode():
            got.append(model(torch.tensor([5, 6, 7]), [1, 1, 1], cache=rows, logits_at=torch.tensor([2, 0])))
        assert (near.lengths, far.lengths) == ([4, 10, 3], [31, 31])
    torch.testing.assert_close(got[1], got[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_changes_in_place_are_seen_and_a_moved_model_is_not_mistaken() -> None:
    plain, quick = both(2)
    with torch.no_grad():
        plain.language_model.model.layers[0].mlp.down_proj.weight.mul_(1.5)  # the same memory as in `quick`
    agree(plain, quick, [6, 3], 0)
    quick.to(torch.float64).to(torch.float32)
    with torch.inference_mode():
        x = quick.embed(torch.tensor([3]), None)
        assert quick.language_model.steps is not None and not quick.language_model.steps.fits(
            x, [1], quick.new_cache(1, 8)
        )


def test_a_copy_has_weights_of_its_own() -> None:
    _, quick = both(3)
    packed = [layer.packed for layer in quick.modules() if isinstance(layer, Linear) and layer.packed is not None]
    copied = copy.deepcopy(quick, {id(each): each for each in packed})  # as `merged_copy` does
    assert copied.language_model.steps is None
    with torch.no_grad():
        copied.language_model.model.norm.weight.mul_(2)
    pack_linears(copied)
    attach_steps(copied.language_model)
    ids = torch.tensor([4])
    with torch.inference_mode():
        once, twice = (model(ids, [1], cache=filled(model, [3], 0)) for model in (quick, copied))
    torch.testing.assert_close(twice, 2 * once, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_does_not_fit_is_left_to_torch() -> None:
    _, quick = pairs()
    fast = quick.language_model.steps
    assert fast is not None
    x, cache = torch.zeros(2, 64), quick.new_cache(2, 8)
    with torch.inference_mode():
        assert fast.fits(x, [1, 1], cache)
        assert not fast.fits(x, [2], cache) and not fast.fits(x.double(), [1, 1], cache)
        assert not fast.fits(torch.zeros(MOST_ROWS + 1, 64), [1] * (MOST_ROWS + 1), cache)
    assert not fast.fits(x, [1, 1], cache)  # gradients are wanted
    half = tiny_model().to(torch.bfloat16)
    attach_steps(half.language_model)
    assert half.language_model.steps is None


def test_without_numba_or_where_it_fails_answers_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    question = [(sound(1.2), 16000), "What is that?"]
    quick = load(folder)
    assert quick.engine.model.language_model.steps is not None
    expected = quick.chat(question, temperature=0, max_new_tokens=24).text

    def fails(*_: object) -> None:
        raise RuntimeError("no compiler")

    with monkeypatch.context() as patch:
        patch.setattr(decode_cpu, "product_in_tiles", fails)
        assert load(folder).chat(question, temperature=0, max_new_tokens=24).text == expected
        assert "more slowly, because numba does not work here: no compiler" in caplog.text
    monkeypatch.setattr(steps, "find_spec", lambda _: None)
    plain = load(folder)
    assert plain.engine.model.language_model.steps is None
    assert plain.chat(question, temperature=0, max_new_tokens=24).text == expected


def test_exponentials() -> None:
    x = np.concatenate([np.linspace(-86, 88, 200_001), np.random.default_rng(0).normal(0, 2, 10_000), [0.0]])
    x = x.astype(np.float32)
    got, expected = x.copy(), np.exp(x.astype(np.float64))
    decode_cpu.exponentials(got)
    np.testing.assert_allclose(got, expected, rtol=2**-22)
    far = np.array([-1000.0, -90.0], np.float32)
    decode_cpu.exponentials(far)
    assert (far < 1e-37).all()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 21), outputs=st.lists(st.integers(4, 23), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_products_in_tiles(rows: int, outputs: list[int], seed: int) -> None:
    """A row is the same, to the bit, alone and in company."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, 37), np.float32)
    weights = tuple(draw.standard_normal((count, 37), np.float32) for count in outputs)
    biases = tuple(draw.standard_normal(count, np.float32) for count in outputs)
    out = np.full((rows, sum(outputs)), np.nan, np.float32)
    decode_cpu.product_in_tiles(weights, biases, x, out)
    expected = np.concatenate([x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)], axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    for row in range(rows):
        alone = np.full((1, sum(outputs)), np.nan, np.float32)
        decode_cpu.product_in_tiles(weights, biases, x[row : row + 1], alone)
        np.testing.assert_array_equal(alone[0], out[row])


@pytest.mark.skipif(not decode_cpu.multiplies_bytes(), reason="this CPU has no AVX-512 VNNI")
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 13),
    size=st.sampled_from([1, 37, 64, 100, 192]),
    outputs=st.lists(st.integers(4, 23), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_products_in_bytes(rows: int, size: int, outputs: list[int], seed: int) -> None:
    """What comes in is rounded to 16 bits and nothing else is; a row is the same, to the bit, alone and in company."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, size), np.float32) * 10.0 ** draw.integers(-3, 4, (rows, 1)).astype(np.float32)
    weights = tuple(draw.integers(-128, 128, (count, size)).astype(np.int8) for count in outputs)
    scales = tuple(draw.random(count, np.float32) for count in outputs)
    biases = tuple(draw.standard_normal(count, np.float32) for count in outputs)
    sums = tuple(weight.sum(1, dtype=np.int32) for weight in weights)

    def product(x: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.full((len(x), sum(outputs)), np.nan, np.float32)
        decode_cpu.product_in_bytes(weights, scales, sums, biases, 1, x.copy(), out)
        return out

    got, exact = product(x), [w.astype(np.float64) * s[:, None] for w, s in zip(weights, scales, strict=True)]
    expected = np.concatenate([x @ weight.T + bias for weight, bias in zip(exact, biases, strict=True)], axis=1)
    step = np.abs(x).max(1, keepdims=True) / (2**15 - 1)
    most = step / 2 * np.concatenate([np.abs(weight).sum(1) for weight in exact]) + 1e-6 * np.abs(expected) + 1e-6
    assert (np.abs(got - expected) <= most).all()
    np.testing.assert_array_equal(np.concatenate([product(row[None]) for row in x]), got)
    x[-1, -1] = np.nan  # is not hidden, and is its row's own affair
    np.testing.assert_array_equal(product(x)[:-1], got[:-1])
    assert np.isnan(product(x)[-1]).all()


@pytest.mark.parametrize("block", [1, 2, 8, 16, 32, 64, 128])
def test_spreading_is_the_plain_one(block: int) -> None:
    x = np.random.default_rng(block).standard_normal(3 * block).astype(np.float32)
    expected = spread(torch.from_numpy(x)[None], spreader(block))[0].numpy()
    spreading.spread(x, block)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_sharing_an_attention_changes_nothing() -> None:
    draw = np.random.default_rng(0)
    rows, heads, kv_heads, dim = 5, 6, 2, 16
    cache = [draw.standard_normal((rows, kv_heads, 40, dim), np.float32) for _ in "kv"]
    past = np.array([0, 3, 38, 11, 4])
    cos, sin = (draw.standard_normal((rows, dim), np.float32) for _ in "cs")
    new = draw.standard_normal((rows, (heads + 2 * kv_heads) * dim), np.float32)
    got = []
    for attention in (decode_cpu.attention_alone, decode_cpu.attention):
        out, written = np.empty((rows, heads * dim), np.float32), [part.copy() for part in cache]
        attention(new.copy(), cos, sin, *written, past, 0, out)
        got.append((out, *written))
    for alone, shared in zip(*got, strict=True):
        np.testing.assert_array_equal(shared, alone)
    assert decode_cpu.attention.targetoptions["parallel"] and "parallel" not in decode_cpu.attention_alone.targetoptions


def test_weights_that_lie_across_lines_of_the_cache_are_moved() -> None:
    plain = tiny_model(tiny_config(4), 4)
    quick = copy.deepcopy(plain)
    for layer in quick.language_model.modules():
        if isinstance(layer, Linear):
            lines = torch.empty(layer.weight.numel() + 17)
            apart = lines[(64 - lines.data_ptr() % 64) // 4 + 1 :][: layer.weight.numel()]
            layer.weight.data = apart.view_as(layer.weight).copy_(layer.weight.data)
            assert layer.weight.data_ptr() % 64 == 4
    align_linears(quick)
    attach_steps(quick.language_model)
    linears = [layer for layer in quick.language_model.modules() if isinstance(layer, Linear)]
    assert linears and not any(layer.weight.data_ptr() % 64 for layer in linears)
    agree(plain, quick, [6, 3], 0)
