"""The house rules that a machine can check; see CONTRIBUTING.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwen2_audio

PACKAGE = Path(qwen2_audio.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def functions(file: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, Function))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_one_concept_one_file(file: Path) -> None:
    assert lines_of(file) <= 400
    too_long = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(file)}
    assert {name: size for name, size in too_long.items() if size > 60} == {}


def test_the_model_is_read_in_one_sitting() -> None:
    assert 0 < sum(lines_of(file) for file in (PACKAGE / "model").glob("*.py")) <= 800


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_assert_guards_user_input(file: Path) -> None:
    """`python -O` removes them, and their message mends nothing."""
    assert [node.lineno for node in ast.walk(tree_of(file)) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(tree_of(file))


def test_public_names_are_explicit() -> None:
    literal = next(
        ast.literal_eval(node.value)
        for node in tree_of(PACKAGE / "__init__.py").body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    assert literal == qwen2_audio.__all__
    assert len(set(literal)) == len(literal)
    for name in literal:
        assert getattr(qwen2_audio, name).__doc__, f"{name} is public and has no docstring"
    with pytest.raises(AttributeError):
        _ = qwen2_audio.no_such_name  # type: ignore[attr-defined]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_does_nothing() -> None:
    heavy = "{'torch', 'numpy', 'tokenizers', 'transformers', 'rich', 'typer'}"
    result = run(f"import sys, qwen2_audio; print(sorted({heavy} & sys.modules.keys()))")
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_importing_any_module_does_nothing() -> None:
    """No output, no logging set up, no threads started, nothing random drawn."""
    modules = [name_of(f).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for f in FILES]
    names = [f"qwen2_audio.{name}" for name in modules if name != "__init__" and not name.endswith("__main__")]
    result = run(
        "import importlib, logging, threading, torch\n"
        "before = torch.get_rng_state(), threading.active_count(), list(logging.root.handlers)\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "after = torch.get_rng_state(), threading.active_count(), list(logging.root.handlers)\n"
        "print(bool((before[0] == after[0]).all()), before[1:] == after[1:])"
    )
    assert (result.stdout, result.stderr) == ("True True\n", "")
