"""The floors of docs/architecture.md: the import-linter contracts of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_imports_point_down() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Contracts:" in result.stdout


def test_every_room_stands_on_a_floor() -> None:
    """A new module of the package must be given its place in the contract."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split('type = "layers"')[1].split("]")[1]
    package = ROOT / "src" / "qwen2_audio"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    placed = set(contract.replace("(", " ").replace(")", " ").replace('"', " ").replace(",", " ").split())
    assert rooms - {"__init__"} <= placed
