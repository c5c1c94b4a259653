"""A few hundred of the fuzz program's requests, and all its raw connections, against a live server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer

ROOT = Path(__file__).parents[2]


# starlette leaves closing a half-received file to its going out of use
@pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")
def test_malformed_requests_and_connections_are_answered_in_order() -> None:
    quick = {"header_timeout": 4, "receive_timeout": 4, "send_timeout": 4, "max_body_mib": 4, "max_upload_mib": 4}
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_server.py"), "--json", "--patience", "60"]
    with HttpServer(FakeBackend(), **quick) as server:
        result = subprocess.run(
            [*command, "--url", server.url, "--count", "220", "--pid", str(os.getpid())],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)
    assert found["failures"] == []
    assert result.returncode == 0
    assert found["requests"] >= 220
    assert len(found["outcomes"]) == 12, "every way to misbehave was tried"
