"""Saved = loaded, in every layout in the wild; transformers reads what we write; damage is named."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qwen2_audio.api import load
from qwen2_audio.checkpoints import save as save_module
from qwen2_audio.checkpoints.load import INDEX, SINGLE, load_config, load_model, weight_files
from qwen2_audio.checkpoints.names import canonical
from qwen2_audio.checkpoints.save import save
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import tiny_config, tiny_folder, tiny_model


def assert_same(a: Qwen2Audio, b: Qwen2Audio) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert a.config == b.config


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_is_loaded(tmp_path: Path, shard_bytes: int, tied: bool) -> None:
    model = tiny_model(tiny_config(tied=tied))
    save(model, tmp_path / "saved", shard_bytes=shard_bytes)
    progress: list[tuple[int, int]] = []
    loaded = load_model(tmp_path / "saved", progress=lambda done, of: progress.append((done, of)))
    assert_same(loaded, model)
    files = weight_files(tmp_path / "saved")
    assert (tmp_path / "saved" / INDEX).exists() == (shard_bytes < 10**9)
    assert progress == [(i + 1, len(files)) for i in range(len(files))]
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    if tied:
        assert loaded.language_model.lm_head.weight is loaded.language_model.model.embed_tokens.weight


def test_shards_keep_to_their_size(tmp_path: Path, model: Qwen2Audio) -> None:
    save(model, tmp_path / "saved", shard_bytes=200_000)
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in weight_files(tmp_path / "saved")]
    assert len(sizes) > 2
    assert max(sizes) <= 200_000
    index = json.loads((tmp_path / "saved" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes)


def test_tied_head_may_be_left_out(tmp_path: Path) -> None:
    """Some writers leave the copy out."""
    model = tiny_model(tiny_config(tied=True))
    save(model, tmp_path / "saved")
    state = load_file(tmp_path / "saved" / SINGLE)
    del state["language_model.lm_head.weight"]
    save_file(state, tmp_path / "saved" / SINGLE)
    assert_same(load_model(tmp_path / "saved"), model)


def test_a_head_of_its_own_wins_over_the_setting(tmp_path: Path) -> None:
    """As in transformers."""
    model = tiny_model(tiny_config(tied=True))
    save(model, tmp_path / "saved")
    state = load_file(tmp_path / "saved" / SINGLE)
    state["language_model.lm_head.weight"] = state["language_model.lm_head.weight"] + 1
    save_file(state, tmp_path / "saved" / SINGLE)
    loaded = load_model(tmp_path / "saved").language_model
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight + 1)


def test_dtype(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    save(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == "bfloat16"
    assert_same(load_model(tmp_path / "saved", dtype=torch.bfloat16), model)
    assert load_model(tmp_path / "saved").dtype == torch.float32


def _transformers_5(name: str) -> str:
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def _resaved(name: str) -> str:
    return name.replace("language_model.", "language_model.model.", 1)


@pytest.mark.parametrize("rename", [str, _transformers_5, _resaved], ids=["published", "transformers 5", "re-saved"])
def test_every_layout_loads(tmp_path: Path, model: Qwen2Audio, rename: Callable[[str], str]) -> None:
    folder = tmp_path / "saved"
    save(model, folder)
    state = {rename(name): tensor for name, tensor in load_file(folder / SINGLE).items()}
    state[rename("language_model.model.layers.0.self_attn.rotary_emb.inv_freq")] = torch.ones(8)
    save_file(state, folder / SINGLE)
    assert_same(load_model(folder), model)


def test_canonical() -> None:
    published = "language_model.model.layers.3.mlp.up_proj.weight"
    spellings = (published, "model.language_model.layers.3.mlp.up_proj.weight", _resaved(published))
    assert {canonical(name) for name in spellings} == {published}
    heads = ("lm_head.weight", "language_model.lm_head.weight", "language_model.model.lm_head.weight")
    assert {canonical(name) for name in heads} == {"language_model.lm_head.weight"}
    assert canonical("model.audio_tower.conv1.bias") == "audio_tower.conv1.bias"


@pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::FutureWarning:transformers")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 100_000])
def test_transformers_loads_what_we_save(tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    from transformers import Qwen2AudioForConditionalGeneration

    model = tiny_model(tiny_config(tied=tied), seed=4)
    save(model, tmp_path / "saved", shard_bytes=shard_bytes)
    theirs, report = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(3, 40)
    with torch.inference_mode():
        got, wanted = model(ids, [len(ids)]), theirs(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::FutureWarning:transformers")
@pytest.mark.parametrize("tied", [False, True])
def test_we_load_what_transformers_saves(tmp_path: Path, tied: bool) -> None:
    from transformers import Qwen2AudioForConditionalGeneration

    model = tiny_model(tiny_config(tied=tied))
    save(model, tmp_path / "ours")
    Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert_same(load_model(tmp_path / "theirs"), model)


def test_side_files_travel_along(tmp_path: Path, model: Qwen2Audio) -> None:
    folder = tiny_folder(tmp_path / "source")
    (folder / "processor_config.json").write_text("{}")  # where transformers 5 keeps all that a processor is made of
    save(model, tmp_path / "copy", source=folder)
    names = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"}
    names |= {"processor_config.json"}
    assert {file.name for file in (tmp_path / "copy").iterdir()} == names | {"config.json", SINGLE}
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


# what is wrong with a folder is said by name


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A checkpoint folder of this test's own, to be damaged."""
    return tiny_folder(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("audio_tower.conv1.bias"), r"1 missing \(audio_tower\.conv1\.bias\)"),
        (lambda state: state.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda state: state.update({"multi_modal_projector.linear.bias": torch.ones(3)}),
            r"multi_modal_projector\.linear\.bias \[3\] instead of \[64\]",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit(
    damaged: Path, change: Callable[[dict[str, torch.Tensor]], object], named: str
) -> None:
    state = load_file(damaged / SINGLE)
    change(state)
    save_file(state, damaged / SINGLE)
    with pytest.raises(CheckpointError, match=named):
        load_model(damaged)


def test_many_missing_tensors_are_counted(damaged: Path) -> None:
    save_file({"audio_tower.conv1.bias": torch.zeros(32)}, damaged / SINGLE)
    with pytest.raises(CheckpointError, match=r"\d\d missing \(.*, \.\.\.\)") as caught:
        load_model(damaged)
    assert len(str(caught.value)) < 700


def test_missing_shard(tmp_path: Path, model: Qwen2Audio) -> None:
    save(model, tmp_path / "saved", shard_bytes=40_000)
    lost = weight_files(tmp_path / "saved")[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} missing; download the model again"):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize("keep", [0, 5, 1_000, 0.5])
def test_truncated_weights(damaged: Path, keep: float) -> None:
    data = (damaged / SINGLE).read_bytes()
    (damaged / SINGLE).write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="damaged or only half downloaded"):
        load_model(damaged)


@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_missing_file(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*missing"):
        load_model(damaged)


@pytest.mark.parametrize(("content", "named"), [("{", "cannot read"), ("[1]", "JSON object"), ("\xff", "cannot read")])
def test_damaged_config(damaged: Path, content: str, named: str) -> None:
    (damaged / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=named):
        load_config(damaged)


def test_wrong_model_type(damaged: Path) -> None:
    (damaged / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="not a Qwen2-Audio checkpoint"):
        load_model(damaged)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_model(tmp_path / "nowhere")


# a save that fails leaves nothing behind


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_full_disk(tmp_path: Path, model: Qwen2Audio, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    calls = []

    def fail(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise failure
        save_file(state, path, metadata)

    monkeypatch.setattr(save_module, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"saved: .*No space left on device.*; free space"):
        save(model, tmp_path / "saved", shard_bytes=40_000)
    assert list(tmp_path.iterdir()) == []


def test_interruption(tmp_path: Path, model: Qwen2Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save_module, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused(tmp_path: Path, model: Qwen2Audio) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save(model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(CheckpointError, match="exists"):
        save(model, tmp_path / "notes.txt")


def test_the_current_folder_is_refused(tmp_path: Path, model: Qwen2Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is the current folder; choose a new one in it"):
        save(model, Path())


def test_empty_folder_is_used(tmp_path: Path, model: Qwen2Audio) -> None:
    (tmp_path / "saved").mkdir()
    save(model, tmp_path / "saved")
    assert_same(load_model(tmp_path / "saved"), model)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_unwritable_place(tmp_path: Path, model: Qwen2Audio) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(model, tmp_path / "file" / "saved")


ODD_FILES: list[tuple[str, dict[str, Any], str]] = [
    ("generation_config.json", {"eos_token_id": None}, ""),
    ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id must be"),
    ("generation_config.json", {"do_sample": True, "top_k": -1}, "generation_config.json .*top_k"),
    ("tokenizer_config.json", {"added_tokens_decoder": None}, "no token '<|AUDIO|>'"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"320": {}}}, "cannot read the tokenizer"),
    ("config.json", {"text_config": [1]}, "text_config must be an object"),
    ("config.json", {"text_config": {"hidden_size": "64"}}, "hidden_size must be a whole number"),
    ("config.json", {"text_config": {"num_attention_heads": 0}}, "num_attention_heads must be"),
    ("config.json", {"audio_token_index": 5}, "mixes files of different models"),
    (INDEX, {"weight_map": None}, "no weight_map"),
    (INDEX, {"weight_map": {"a": 5}}, "no weight_map"),
    (INDEX, {"weight_map": {"a": ".."}}, "incomplete"),
]


@pytest.mark.parametrize(("name", "change", "message"), ODD_FILES)
def test_odd_json(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    file = tiny_folder(tmp_path / "model") / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | change))
    if not message:
        assert load(file.parent, device="cpu").engine.end_ids
        return
    with pytest.raises(CheckpointError, match=re.escape(message) if "|" in message else message) as error:
        load(file.parent, device="cpu")
    assert "\n" not in str(error.value)
