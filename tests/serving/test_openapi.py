"""Requests made up from /openapi.json, sensible and senseless: no 5xx, every answer as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer

EXAMPLES = 25
"""Requests of each kind, a route."""


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    """The description that a live server gives of itself."""
    with HttpServer(FakeBackend(), max_clips=2, decode_timeout=5) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_brings_the_server_down(schema: Any, mode: GenerationMode) -> None:
    routes = [found.ok() for found in schema.get_all_operations()]
    assert len(routes) >= 9
    for route in routes:
        if mode is GenerationMode.POSITIVE or len(route.body):  # what takes nothing cannot be asked wrongly
            _try(route, mode)


def _try(route: Any, mode: GenerationMode) -> None:
    # random text is no recording, so a body that fits the schema may still be refused
    excluded = [positive_data_acceptance] if route.method.upper() == "POST" else []

    @given(case=route.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def attempt(case: Any) -> None:
        case.call_and_validate(excluded_checks=excluded, timeout=30)

    attempt()
