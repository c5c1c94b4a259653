"""Documents run: snippets, examples, configurations and every path they name."""

import functools
import json
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import qwen2_audio
from qwen2_audio import DownloadError
from qwen2_audio.training.config import load_train_config
from qwen2_audio.training.rows import parse_row

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LAUNCHES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
CONFIGS = sorted(set((ROOT / "configs").rglob("*.yaml")) - set(LAUNCHES))
ROOMS = ("src/", "tests/", "docs/", "examples/", "configs/", "recipes/", "benchmarks/", "finetune/", ".ci/")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path) -> list[tuple[str, str]]:
    """Language and contents of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def headings(path: Path) -> list[int]:
    """Levels of the headings, in order."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def committed() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree")
    files = [ROOT / name for name in listing.split("\0") if name]
    not_text = (".flac", ".wav", ".ogg", ".safetensors", ".png", ".webp")
    return [file for file in files if file.suffix not in not_text and file.exists()]


@pytest.fixture(scope="module")
def load_once() -> Callable[..., qwen2_audio.Assistant]:
    """`load`, loading each model once; skips when `mini` is not here and cannot be had."""
    load = functools.cache(qwen2_audio.load)
    try:
        load("mini")
    except DownloadError as error:
        pytest.skip(f"mini cannot be had: {error}")
    return load


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch, load_once: Callable[..., qwen2_audio.Assistant]) -> None:
    """As a reader runs them: from the root of the repository, with `mini`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("QWEN2_AUDIO_MODEL", "mini")
    monkeypatch.setattr(qwen2_audio, "load", load_once)


def cells(document: Path) -> list[list[str]]:
    """What stands in backquotes in each row of the tables."""
    rows = [line for line in document.read_text().splitlines() if line.startswith("|")]
    return [re.findall(r"`[^`]+`", row) for row in rows]


def test_the_chinese_readme_is_a_twin() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README_CN.md"
    assert headings(chinese) == headings(english)
    assert fences(chinese) == fences(english)
    assert cells(chinese) == cells(english)


def test_the_readme_starts_with_two_commands() -> None:
    first = fences(ROOT / "README.md")[0]
    assert first[0] == "bash"
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make chat", "make test"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_python_in_documents_compiles(document: Path) -> None:
    for number, (language, code) in enumerate(fences(document), 1):
        if language == "python":
            compile(code, f"{document.name}, block {number}", "exec")


@pytest.mark.usefixtures("at_root")
def test_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks in order, later ones seeing the names of earlier ones, as a reader would paste them."""
    names: dict[str, object] = {"__name__": "readme"}
    blocks = [code for language, code in fences(ROOT / "README.md") if language == "python"]
    assert len(blocks) >= 4
    for number, code in enumerate(blocks, 1):
        exec(compile(code, f"README.md, python block {number}", "exec"), names)
        assert capsys.readouterr().out.strip(), f"block {number} printed nothing"


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("example", EXAMPLES, ids=relative)
def test_examples_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=relative)
def test_examples_are_short_and_listed(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40
    assert f"`{relative(example)}`" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", CONFIGS, ids=relative)
def test_configurations_parse(config: Path) -> None:
    assert load_train_config(config).out.startswith("runs/")


@pytest.mark.parametrize("launch", LAUNCHES, ids=relative)
def test_launch_configurations_are_those_of_accelerate(launch: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(launch)).num_processes == (1 if launch.stem == "one" else 2)
    assert launch.read_text().startswith("# ")


def test_rows_in_documents_are_rows() -> None:
    blocks = [code for document in DOCUMENTS for language, code in fences(document) if language == "json"]
    rows = [json.loads(line) for code in blocks for line in code.splitlines()]
    assert {type(parse_row(row, ROOT)).__name__ for row in rows} == {"ChatRow", "BareRow", "PreferenceRow"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_documents_name_files_that_exist(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`([^`\s]+)`", text)
    paths = [
        name for name in quoted if name.startswith(ROOMS) or re.fullmatch(r"\w+\.(md|toml)|LICENSE|Makefile", name)
    ]
    assert [name for name in paths if not (ROOT / name).exists()] == []
    assert document.name != "README.md" or paths


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_documents_name_make_targets_that_exist(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(targets)


def test_nothing_names_this_machine_or_a_registry() -> None:
    """Such strings are put together here, or this file would find itself."""
    paths = ["/" + "work/", "/opt/" + "dev", "/opt/" + "wheels", "/" + "root/", "/home" + "/"]
    hosts = ["pypi" + ".org", "python" + "hosted.org", "download.pytorch" + ".org", "registry." + "npmjs"]
    forbidden = [*paths, *hosts, "deb." + "debian.org"]
    found = []
    for file in committed():
        text = file.read_text(encoding="utf-8")
        found += [f"{relative(file)}: {word}" for word in forbidden if word in text]
    assert found == []
