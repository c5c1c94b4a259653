"""`render`, `info` and `download` on a tiny checkpoint folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.processing.processor import Processor
from tests.cli.conftest import Run
from tests.tiny import tiny_config, tiny_folder, tiny_model


@pytest.fixture(autouse=True)
def _model(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWEN2_AUDIO_MODEL", str(folder))
    monkeypatch.setenv("QWEN2_AUDIO_CACHE", str(tmp_path / "cache"))


def test_render_json_is_what_the_model_gets(run: Run, processor: Processor, wav: Path) -> None:
    facts = json.loads(run("render", wav, "What is it?", "--system", "Be brief.", "--json").out)
    prompt = processor.prepare(Conversation().system("Be brief.").user(str(wav), "What is it?"))
    clip = prompt.clips[0]
    assert (facts["prompt"], facts["ids"], facts["tokens"]) == (prompt.text, prompt.ids, len(prompt.ids))
    assert facts["clips"] == [{"seconds": 0.5, "frames": clip.frames, "tokens": clip.tokens}]
    assert facts["audio_tokens"] == clip.tokens and facts["text_tokens"] == len(prompt.ids) - clip.tokens


def test_render_for_people(run: Run, processor: Processor, wav: Path) -> None:
    out = run("render", wav, "What is it?").out
    prompt = processor.prepare(Conversation().user(str(wav), "What is it?"))
    assert out.startswith(prompt.text)
    assert f"Audio 1: 0.50 s, 50 mel frames, {prompt.clips[0].tokens} tokens\n" in out
    runs = [run.partition("*") for run in out.splitlines()[-1].split()]
    assert [int(token) for token, _, count in runs for _ in range(int(count or 1))] == prompt.ids


def test_render_base(run: Run, processor: Processor, wav: Path) -> None:
    facts = json.loads(run("render", "--base", wav, "Transcribe:", "--json").out)
    assert facts["prompt"] == "<|audio_bos|><|AUDIO|><|audio_eos|>Transcribe:"
    assert facts["ids"] == processor.prepare_base([str(wav)], "Transcribe:").ids
    assert run("render", "--base", wav).code == 2
    assert run("render", "--base", "Transcribe:", wav).code == 2


def test_render_a_conversation_of_the_original(run: Run, processor: Processor, wav: Path, tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "audio", "audio_url": str(wav)}, {"type": "text", "text": "Hm?"}]},
        {"role": "assistant", "content": "A tone."},
        {"role": "user", "content": "Sure?"},
    ]
    file = tmp_path / "conversation.json"
    file.write_text(json.dumps(messages), encoding="utf-8")
    facts = json.loads(run("render", "--conversation", file, "--json").out)
    assert facts["ids"] == processor.prepare(Conversation.parse(messages)).ids
    assert "given twice" in run("render", "--conversation", file, "--system", "x").err


@pytest.mark.parametrize("content", ["{", "{}", "[]", '["Hi"]', '[{"role": "user"}]'])
def test_a_conversation_that_is_none(run: Run, tmp_path: Path, content: str) -> None:
    file = tmp_path / "conversation.json"
    file.write_text(content, encoding="utf-8")
    result = run("render", "--conversation", file)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_render_needs_no_weights(run: Run, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.glob("*.json"):
        (bare / file.name).write_bytes(file.read_bytes())
    assert run("render", "Hi", "--model", bare).code == 0


def test_render_fetches_no_weights(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(_name: str, **options: Any) -> str:
        assert "*.safetensors" not in options["allow_patterns"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert run("render", "Hi", "--model", "Qwen/Qwen2-Audio-7B").code == 0


def test_info_of_a_model(run: Run, folder: Path, model: Qwen2Audio) -> None:
    facts = json.loads(run("info", "--model", folder, "--json").out)
    assert facts["models"] == []
    assert facts["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["model"]["vocabulary"] == 384 and facts["model"]["mel bins"] == 128


def test_info_for_people(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "mini-0123456789ab").mkdir(parents=True)
    (tmp_path / "cache" / "mini-0123456789ab" / "config.json").touch()
    lines = dict(line.split(maxsplit=1) for line in run("info", "--model", folder).out.splitlines())
    assert lines["models"] == "mini-0123456789ab" and lines["dtype"] and lines["vocabulary"] == "384"


def test_info_knows_what_was_fetched_from_a_hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(name: str, **options: Any) -> str:
        assert options["local_files_only"]
        if name != "Qwen/Qwen2-Audio-7B":
            raise LocalEntryNotFoundError("not there")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    assert json.loads(run("info", "--json").out)["models"] == ["Qwen/Qwen2-Audio-7B"]


def test_info_never_fetches(run: Run) -> None:
    result = run("info", "--model", "mini-base")
    assert result.code == 2 and "qwen2-audio download mini-base" in result.err


def test_download_prints_the_folder(run: Run, folder: Path) -> None:
    assert run("download", folder).out == f"{folder.resolve()}\n"
    assert run("download", "mini-base", "--offline").code == 2


def test_info_counts_a_tied_head_once(run: Run, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(tied=True))
    folder = tiny_folder(tmp_path / "tied", model)
    facts = json.loads(run("info", "--model", folder, "--json").out)
    assert facts["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
