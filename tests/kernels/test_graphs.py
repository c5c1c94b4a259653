"""Captured steps and prompts give what the plain layers give. Capturing itself needs a GPU; here what would be captured runs
again instead, its kernels in Triton's interpreter."""

from __future__ import annotations

import ast
import contextlib
import copy
import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from qwen2_audio import load
from qwen2_audio.gpu import abilities
from qwen2_audio.kernels.capture import TRIALS, Replay
from qwen2_audio.kernels.encoder_graphs import EncoderGraphs
from qwen2_audio.kernels.graphs import CapturedStep, Graphs
from qwen2_audio.kernels.packing import Joined
from qwen2_audio.model.kv_cache import KVCache, PackedRows
from qwen2_audio.model.linear import groups
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import VOCAB, sound, tiny_config, tiny_folder, tiny_model

step_gpu = pytest.importorskip("qwen2_audio.kernels.step_gpu", reason="wants Triton")
elementwise, int4, products = (
    pytest.importorskip(f"qwen2_audio.gpu.{name}") for name in ("elementwise", "int4", "products")
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter: exponentials of minus infinity
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_gpu.py does this"),
]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one after the other."""
    monkeypatch.setattr(step_gpu.kernels, "_PROGRAMS", 2)
    monkeypatch.setattr("qwen2_audio.gpu.products._tile", lambda *_: (256, 64, 4))


class Again:
    """`count` tells how often something was captured."""

    count = 0

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        run()
        Again.count += 1

    def replay(self) -> None:
        self._run()


def attached(model: Qwen2Audio, capture: Callable[[Callable[[], object]], Replay] = Again) -> Graphs:
    with torch.inference_mode():
        graphs = Graphs(model.language_model, step_gpu.Step(model.language_model), capture, CPU)
    model.language_model.steps = graphs
    return graphs


def joined(model: Qwen2Audio) -> Qwen2Audio:
    """As weights lie on a GPU."""
    for parent in model.modules():
        for group in groups(parent):
            if len(group) > 1:
                next(iter(group.values())).packed = Joined(list(group.values()))
    return model


def filled(model: Qwen2Audio, lengths: list[int], capacity: int, seed: int) -> KVCache:
    cache = model.new_cache(len(lengths), capacity)
    for tensor in (*cache._keys, *cache._values):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))
    cache.lengths = list(lengths)
    return cache


def held(cache: KVCache) -> torch.Tensor:
    return torch.stack([torch.stack(cache.rows_of_layer(layer)[0]) for layer in range(len(cache._keys))])


@pytest.mark.parametrize(("gqa", "together"), [(True, True), (False, False)])
@pytest.mark.parametrize("lengths", [[0], [40], [7, 200, 2], [3] * 5])
def test_steps_equal_the_plain_layers(gqa: bool, together: bool, lengths: list[int]) -> None:
    model = tiny_model(tiny_config(1, gqa=gqa), 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    graphs = attached(joined(model) if together else model)
    caches = [filled(model, lengths, 204, 0) for _ in "pg"]
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):  # past what the cache held at first
        ids = torch.randint(VOCAB, (len(lengths),), generator=draw)
        with torch.inference_mode():
            model.language_model.steps = None
            expected = model(ids, [1] * len(ids), cache=caches[0])
            model.language_model.steps = graphs
            got = model(ids, [1] * len(ids), cache=caches[1], logits_at=torch.arange(len(ids)))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        assert caches[1].lengths == caches[0].lengths
    assert graphs.works and graphs.replayed == 5 - TRIALS


def test_prompts_equal_the_plain_layers() -> None:
    model = tiny_model(tiny_config(1), 1)
    graphs = attached(joined(model))
    everywhere, nowhere = None, torch.tensor([], dtype=torch.long)
    last = [(lengths, torch.tensor([lengths[0] - 1])) for lengths in ([5], [9], [32], [2], [33], [40], [34])]
    others = [([5, 1, 30], everywhere), ([3, 3], torch.tensor([5, 2])), ([6], nowhere)]
    for lengths, at in [*last, *others]:
        caches = [filled(model, [0] * len(lengths), 60, 0) for _ in "pg"]
        ids = torch.randint(VOCAB, (sum(lengths),))
        with torch.inference_mode():
            model.language_model.steps = None
            expected = model(ids, lengths, cache=caches[0], logits_at=at)
            model.language_model.steps = graphs
            got = model(ids, lengths, cache=caches[1], logits_at=at)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(held(caches[1]), held(caches[0]), atol=1e-4, rtol=1e-4)
        assert caches[1].lengths == caches[0].lengths
    assert graphs.works and graphs.replayed > 3
    assert set(graphs._ways) == {("prompts", 0), ("prompt", 32), ("prompt", 64)}


def test_prompts_without_logits_prove_nothing() -> None:
    model = tiny_model(tiny_config(1), 1)
    graphs = attached(model)
    with torch.inference_mode():
        for _ in range(TRIALS + 1):
            cache = filled(model, [0], 60, 0)
            model(torch.arange(6), [6], cache=cache, logits_at=torch.tensor([], dtype=torch.long))
    assert graphs.works and not graphs._trials


def test_captured_in_inference_mode_and_used_without_gradients() -> None:
    model = tiny_model(tiny_config(1), 1)
    graphs = attached(model)
    quick = model.audio_tower.quick = EncoderGraphs(model.audio_tower, Again, CPU)
    mel = torch.randn(model.config.audio.num_mel_bins, 52)
    results = []
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            for _ in range(TRIALS + 2):
                cache = filled(model, [3], 40, 0)
                results.append((model(torch.tensor([5]), [1], cache=cache), model.audio_tower([mel], [50])))
    for step, states in results[1:]:
        torch.testing.assert_close(step, results[0][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states, results[0][1], atol=1e-4, rtol=1e-4)
    assert graphs.works and graphs.replayed == TRIALS + 4 and quick.works and quick.replayed == TRIALS + 3


def test_threads_with_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = step_gpu.Step.decode

    def decode(*given: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001)  # which lets another thread go on
        out: torch.Tensor = turn(*given)
        return out

    monkeypatch.setattr(step_gpu.Step, "decode", decode)
    model = tiny_model(tiny_config(1), 1)
    graphs = attached(model)

    def steps(seed: int) -> torch.Tensor:
        cache = filled(model, [3 + seed], 60, seed)
        with torch.inference_mode():
            return torch.cat([model(torch.tensor([seed + n]), [1], cache=cache) for n in range(12)])

    model.language_model.steps = None
    expected = [steps(seed) for seed in range(4)]
    model.language_model.steps = graphs
    with ThreadPoolExecutor(4) as pool:
        for got, alone in zip(pool.map(steps, range(4)), expected, strict=True):
            torch.testing.assert_close(got, alone, atol=1e-4, rtol=1e-4)
    assert graphs.works


def test_kernels_are_launched_on_the_gpu_of_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function that launches some enters it."""
    given: list[torch.Tensor] = []

    class Entered(contextlib.nullcontext[None]):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__()
            given.append(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", Entered)
    x = torch.randn(2, 16)
    elementwise.gated(x, x), elementwise.rotate(x[:, None], x, x)
    assert given[0] is x and len(given) == 2
    for module in (elementwise, step_gpu.kernels, int4, products):
        tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            launches = any(isinstance(n, ast.Call) and isinstance(n.func, ast.Subscript) for n in ast.walk(function))
            jitted = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
            guarded = hasattr(getattr(module, function.name), "__wrapped__")
            assert jitted or guarded or not launches or function.name == "_rotated", function.name


def test_without_a_compiler_the_plain_layers_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(elementwise, "gated", fail)
    assert not abilities.compiles.__wrapped__(CPU)
    assert "Triton cannot compile here (Failed to find C compiler.)" in caplog.text
    monkeypatch.undo()
    assert abilities.compiles.__wrapped__(CPU)


def test_rows_of_several_caches_and_other_rows_from_step_to_step() -> None:
    model = tiny_model(tiny_config(2), 2)
    graphs = attached(model)
    for parts in ([(0, 1, 2)], [(0, 0, 1), (1, 1, 1)], [(1, 0, 2)]):
        results = []
        for steps in (None, graphs):
            model.language_model.steps = steps
            caches = [filled(model, [4, 9, 2], 60, 1), filled(model, [30, 31], 60, 2)]
            out = []
            for step in range(4):
                if step == 2:
                    caches[0].resize(5)  # its tensors lie elsewhere now
                rows = PackedRows([(caches[which], first, count) for which, first, count in parts])
                with torch.inference_mode():
                    out.append(model(torch.tensor([5 + step, 6]), [1, 1], cache=rows))
            results.append((torch.stack(out), [cache.lengths for cache in caches]))
        torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=1e-4)
        assert results[1][1] == results[0][1]
    assert graphs.replayed == 3 * 4 - TRIALS


def test_answers_of_a_crowd_are_the_same(tmp_path: Path) -> None:
    plain, quick = (load(tiny_folder(tmp_path / name, seed=3), device="cpu") for name in ("a", "b"))
    plain.model.language_model.steps = None
    graphs = attached(quick.model)
    clips = [(sound(seconds, seed=number), 16_000) for number, seconds in enumerate((0.4, 0.9))]
    items = [[clip, "what is this?"] for clip in clips] + ["hello"]
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 5}):
        answers = [
            [reply.text for reply in assistant.batch(items, max_new_tokens=6, **options)]  # type: ignore[arg-type]
            for assistant in (plain, quick)
        ]
        assert answers[0] == answers[1] and any(answers[0])
    assert graphs.replayed > 0


class Fails(Again):
    def __init__(self, run: Callable[[], object]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


class DoesNothing(Again):
    def replay(self) -> None:
        pass


class Once(Again):
    """Right at its first replay only."""

    def replay(self) -> None:
        super().replay()
        self._run = lambda: None


@pytest.mark.parametrize("capture", [Fails, DoesNothing, Once, None])
def test_what_cannot_be_captured_runs_plainly(
    capture: type[Again] | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capture is None:  # the step is wrong, and writes what is wrong into the cache
        right = step_gpu.kernels.attend
        monkeypatch.setattr(step_gpu.kernels, "attend", lambda qkv, *given: right(-3 * qkv, *given))
    model = tiny_model(tiny_config(4), 4)
    graphs = attached(model, capture or Again)
    caches = [filled(model, [3, 5], 40, 0) for _ in "pg"]
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for step in range(5):
            ids = torch.tensor([step, step + 1])
            model.language_model.steps = None
            expected = model(ids, [1, 1], cache=caches[0])
            model.language_model.steps = graphs
            torch.testing.assert_close(model(ids, [1, 1], cache=caches[1]), expected, atol=1e-5, rtol=1e-5)
    assert not graphs.works and graphs.replayed == 0 and len(caplog.records) == 1


def test_nothing_holds_a_model_that_is_gone() -> None:
    model = tiny_model(tiny_config(7), 7)
    attached(model)
    with torch.inference_mode():
        model(torch.tensor([1]), [1], cache=model.new_cache(1, 8))
    assert copy.deepcopy(model).language_model.steps is None
    gone = weakref.ref(model.language_model)
    del model
    assert gone() is None  # no circle that only the collector would find


def test_a_graph_holds_what_it_reads_and_not_the_cache() -> None:
    model = tiny_model(tiny_config(7), 7)
    cache = filled(model, [3], 40, 0)
    x = torch.zeros(1, model.config.text.hidden_size)
    with torch.inference_mode():
        step = CapturedStep(step_gpu.Step(model.language_model), Again, x, VOCAB)
        first = step(x, [1], cache, None).clone()
        keys = weakref.ref(cache._keys[0])
        del cache
        assert keys() is None
        torch.testing.assert_close(step(x, [1], filled(model, [3], 40, 0), None), first)


def test_other_work_is_left_alone() -> None:
    model = tiny_model(tiny_config(6), 6)
    graphs, cache = attached(model), filled(model, [1, 1], 8, 0)
    x = torch.zeros(2, 64)
    assert not graphs.fits(x, [1, 1], cache)  # gradients are on
    with torch.inference_mode():
        assert graphs.fits(x, [1, 1], cache)
        assert not graphs.fits(x, [2], cache)  # behind what is cached
        assert not graphs.fits(torch.zeros(65, 64), [1] * 65, filled(model, [1] * 65, 8, 0))
        assert not graphs.fits(x.to("meta"), [1, 1], cache) and not graphs.fits(x.bfloat16(), [1, 1], cache)
        model.to(torch.float64).to(torch.float32)
        assert not graphs.fits(x, [1, 1], cache)


@pytest.mark.parametrize("capture", [Again, Fails, Once])
def test_the_encoder(capture: type[Again], caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(tiny_config(1), 1)
    encoder = model.audio_tower
    quick = EncoderGraphs(encoder, capture, CPU)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for frames in (50, 53, 49, 64, 3, 70, 72, 75, 3000, 2999, 2990, 2970):
            mel = torch.randn(model.config.audio.num_mel_bins, min(frames + 2, 3000))
            encoder.quick = None
            expected = encoder([mel], [frames])
            encoder.quick = quick
            torch.testing.assert_close(encoder([mel], [frames]), expected, atol=1e-4, rtol=1e-4)
        assert quick(torch.zeros(9, encoder.layer_norm.weight.shape[0]), [4, 5]) is None
    assert quick.works == (capture is Again) == (quick.replayed > 4) == (not caplog.records)
