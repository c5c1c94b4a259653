"""Captured steps give what the plain layers give. Capturing itself needs a GPU; here the operations are recorded with the very
tensors they were given, and "replay" repeats them on these: as in a graph, what the host worked out stays as it was."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwen2_audio import load
from qwen2_audio.kernels import graphs as module
from qwen2_audio.kernels.graphs import _PLAIN_STEPS, _TRIALS, Graphs
from qwen2_audio.model.kv_cache import KVCache, PackedRows
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import VOCAB, sound, tiny_config, tiny_folder, tiny_model

CPU = torch.device("cpu")


class Again(TorchDispatchMode):
    """What a function asked of torch; `count` tells how often something was captured."""

    count = 0

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__()
        self._asked: list[tuple[Any, Any, Any, Any]] = []
        run()
        with self:
            run()
        Again.count += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not isinstance(result, (int, float, bool)), f"{func} asks the device"
        self._asked.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, before in self._asked:
            after = func(*args, **kwargs)
            given = {_place(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, torch.Tensor) and _place(old) not in given:  # else it lies where its source lies
                    old.copy_(new)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0  # a packed weight


def attached(model: Qwen2Audio, capture: Callable[[Callable[[], object]], object] = Again) -> Graphs:
    graphs = Graphs(model.language_model, capture, CPU)  # type: ignore[arg-type]
    model.language_model.steps = graphs
    return graphs


def filled(model: Qwen2Audio, lengths: list[int], capacity: int, seed: int) -> KVCache:
    cache = model.new_cache(len(lengths), capacity)
    for tensor in (*cache._keys, *cache._values):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
    cache.lengths = list(lengths)
    return cache


@pytest.mark.parametrize(("seed", "gqa"), [(0, True), (1, False)])
@pytest.mark.parametrize("lengths", [[0], [7, 300, 2], [250, 3], [40] * 5])
def test_steps_equal_the_plain_layers(seed: int, gqa: bool, lengths: list[int]) -> None:
    model = tiny_model(tiny_config(seed, gqa=gqa), seed)
    graphs, caches = attached(model), [filled(model, lengths, 310, seed) for _ in "pg"]
    draw = torch.Generator().manual_seed(seed)
    for _ in range(24):  # past a bound of positions, and past what the cache held at first
        ids = torch.randint(VOCAB, (len(lengths),), generator=draw)
        with torch.inference_mode():
            model.language_model.steps = None
            expected = model(ids, [1] * len(ids), cache=caches[0])
            model.language_model.steps = graphs
            got = model(ids, [1] * len(ids), cache=caches[1], logits_at=torch.arange(len(ids)))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        assert caches[1].lengths == caches[0].lengths
    assert graphs.replayed > 10 and graphs.works


def test_neighbours_in_a_larger_cache_and_rows_of_several() -> None:
    model = tiny_model(tiny_config(2), 2)
    graphs = attached(model)
    for parts in ([(0, 1, 2)], [(0, 0, 1), (1, 1, 1)]):
        results = []
        for steps in (None, graphs):
            model.language_model.steps = steps
            caches = [filled(model, [4, 9, 2], 60, 1), filled(model, [30, 31], 60, 2)]
            out = []
            for step in range(10):
                rows = PackedRows([(caches[which], first, count) for which, first, count in parts])
                with torch.inference_mode():
                    out.append(model(torch.tensor([5 + step, 6]), [1, 1], cache=rows))
            results.append((torch.stack(out), [cache.lengths for cache in caches]))
        torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=1e-4)
        assert results[1][1] == results[0][1]
    assert graphs.replayed == 10 - _PLAIN_STEPS - _TRIALS  # of the first kind only


def test_answers_of_a_crowd_are_the_same(tmp_path: Path) -> None:
    plain, quick = (load(tiny_folder(tmp_path / name, seed=3), device="cpu") for name in ("a", "b"))
    plain.model.language_model.steps = None
    graphs = attached(quick.model)
    clips = [(sound(seconds, seed=number), 16_000) for number, seconds in enumerate((0.4, 2.0, 0.9))]
    items = [[clip, "what is this?"] for clip in clips] + ["hello", "the dog barked at the man"]
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 5}):
        answers = [
            [reply.text for reply in assistant.batch(items, max_new_tokens=30, **options)]  # type: ignore[arg-type]
            for assistant in (plain, quick)
        ]
        assert answers[0] == answers[1] and any(answers[0])
    assert graphs.replayed > 0


class Fails(Again):
    def __init__(self, run: Callable[[], object]) -> None:
        run()
        raise RuntimeError("operation not permitted when stream is capturing")


class DoesNothing(Again):
    def replay(self) -> None:
        pass


class Once(Again):
    """Right at its first replay only."""

    def replay(self) -> None:
        super().replay()
        self._asked = []


@pytest.mark.parametrize("capture", [Fails, DoesNothing, Once, None])
def test_what_cannot_be_captured_runs_plainly(
    capture: type[Again] | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capture is None:  # the captured step is wrong, and writes what is wrong into the cache
        right = module._FixedCache.attend
        monkeypatch.setattr(module._FixedCache, "attend", lambda *given: right(*given[:3], -3 * given[3], *given[4:]))
    model = tiny_model(tiny_config(4), 4)
    graphs = attached(model, capture or Again)
    caches = [filled(model, [3, 5], 40, 0) for _ in "pg"]
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for step in range(12):
            ids = torch.tensor([step, step + 1])
            model.language_model.steps = None
            expected = model(ids, [1, 1], cache=caches[0])
            model.language_model.steps = graphs
            torch.testing.assert_close(model(ids, [1, 1], cache=caches[1]), expected, atol=1e-5, rtol=1e-5)
    assert not graphs.works and graphs.replayed == 0 and len(caplog.records) == 1


def test_what_a_graph_reads_lives_as_long_as_it_and_caches_do_not() -> None:
    seen: list[weakref.ref[object]] = []

    class Real(Again):
        """As a real graph does, it remembers addresses only."""

        def __init__(self, run: Callable[[], object]) -> None:
            cells = [cell.cell_contents for cell in run.__closure__ or ()]
            whole = next(cell for cell in cells if isinstance(cell, module._FixedCache))
            seen.extend(weakref.ref(tensor) for tensor in (whole.rows.past, whole.rows.every, whole.rows.all))
            seen.append(weakref.ref(whole))

    model = tiny_model(tiny_config(7), 7)
    graphs = attached(model, Real)
    layers = model.language_model.model.config.num_hidden_layers
    cache = filled(model, [3], 40, 0)
    rows, x = module._FixedRows(torch.tensor([3]), 40), torch.zeros(1, model.config.text.hidden_size)
    with torch.inference_mode():
        graph = graphs._captured((0,), rows, [cache.rows_of_layer(layer)[0] for layer in range(layers)], x)
    del rows
    assert graph is not None
    assert [reference() is not None for reference in seen] == [True, True, True, False]
    gone = weakref.ref(model.language_model)
    del model
    assert gone() is None  # no circle that only the collector would find


def test_few_graphs_are_kept_and_short_answers_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 32)
    model = tiny_model(tiny_config(5), 5)
    graphs, before = attached(model), Again.count
    caches = [filled(model, [number], 64, 0) for number in range(40)]
    with torch.inference_mode():
        for number, cache in enumerate(caches):
            for _ in range(_PLAIN_STEPS):
                model(torch.tensor([1]), [1], cache=cache)
            assert Again.count == before + number
            model(torch.tensor([1]), [1], cache=cache)
            assert Again.count == before + number + 1
    assert len(graphs._graphs) == 8  # the 33rd made all others go


def test_other_work_is_left_alone() -> None:
    model = tiny_model(tiny_config(6), 6)
    graphs = attached(model)
    x = torch.zeros(2, 64)
    assert not graphs.fits(x, [1, 1])  # gradients are on
    with torch.inference_mode():
        assert graphs.fits(x, [1, 1]) and not graphs.fits(x, [2]) and not graphs.fits(torch.zeros(65, 64), [1] * 65)
        assert not graphs.fits(x.to("meta"), [1, 1])
        model.to(torch.float64).to(torch.float32)
        assert not graphs.fits(x, [1, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_on_a_gpu() -> None:
    from qwen2_audio.kernels.graphs import attach_graphs

    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        model = tiny_model(tiny_config(0), 0).to("cuda", dtype)
        attach_graphs(model.language_model)
        graphs = model.language_model.steps
        assert isinstance(graphs, Graphs)
        caches = [filled(model, [7, 300], 310, 0) for _ in "pg"]
        for step in range(24):
            ids = torch.tensor([step, step + 1], device="cuda")
            with torch.inference_mode():
                model.language_model.steps = None
                expected = model(ids, [1, 1], cache=caches[0])
                model.language_model.steps = graphs
                got = model(ids, [1, 1], cache=caches[1])
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
        assert graphs.works and graphs.replayed > 10
