"""The judge's replies are kept: not asked for again, read without a server, whole after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.judge import ALONE, Judge, Request
from qwen2_audio.evaluation.judge_cache import read_replies
from tests.evaluation.judge_server import KEY, Hang, JudgeServer, quick, requests

pytestmark = pytest.mark.usefixtures("judge_key")


def test_a_kept_reply_is_not_asked_for_again(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "replies.jsonl"
    with JudgeServer(lambda prompt, _: f"«{prompt}» \ud800") as server:
        judge = quick(server, cache=cache)
        first = judge.ask(requests("a", "b"))
        assert judge.ask(requests("a", "b")) == first and len(server.bodies) == 2
        replace(judge, model="another").ask(requests("a"))
        replace(judge, mode="official").ask(requests("a"))
        replace(judge, mode="official", seed=1).ask(requests("a"))
        assert len(server.bodies) == 5
    rows = [json.loads(line) for line in cache.read_text().splitlines()]
    assert {(row["sample"], row["position"], row["judge"], row["mode"]) for row in rows[:2]} == {
        ("sample 0", "alone", "a-judge", "deterministic"), ("sample 1", "alone", "a-judge", "deterministic"),
    }  # fmt: skip
    assert {row["reply"] for row in rows[:2]} == {"«a» \ud800", "«b» \ud800"}
    assert KEY not in cache.read_text()


def test_recorded_replies_need_no_server(tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    with JudgeServer(lambda prompt, _: prompt.upper()) as server:
        live = quick(server, cache=cache)
        replies = live.ask(requests("a", "b"))
    offline = replace(live, cache=None, recorded=cache)
    before = cache.read_bytes()
    assert offline.ask(requests("a", "b")) == replies
    with pytest.raises(
        UsageError, match=r"no reply of a-judge \(deterministic\) about sample 'sample 1' \(alone\), and 2"
    ):
        offline.ask(requests("a", "new", "newer"))
    with pytest.raises(UsageError, match="cannot read the judge's replies"):
        replace(offline, recorded=tmp_path / "none.jsonl").ask(requests("a"))
    assert cache.read_bytes() == before


def test_a_reply_keeps_the_address_it_came_from(tmp_path: Path) -> None:
    """The key does not hold it, so a reply of another server may be taken: then the score says so."""
    cache = tmp_path / "replies.jsonl"
    said: list[str] = []
    with JudgeServer(lambda prompt, _: prompt) as first, JudgeServer(lambda prompt, _: prompt) as second:
        quick(first, cache=cache).ask(requests("a"))
        both = quick(second, cache=cache, say=said.append).ask(requests("a", "b"))
        recorded = Judge("a-judge", recorded=cache, say=said.append).ask(requests("a", "b"))
        addresses = [f"{server.url}/chat/completions" for server in (first, second)]
    assert [reply.address for reply in both] == [reply.address for reply in recorded] == addresses
    assert said == [
        "the judge a-judge: 1 replies are known, 1 are asked for",
        "the judge a-judge: 2 replies are known, 0 are asked for",
    ]
    rows = [
        {key: value for key, value in json.loads(line).items() if key != "address"}
        for line in cache.read_text().splitlines()
    ]
    cache.write_text("".join(json.dumps(row) + "\n" for row in rows))  # as it was kept without the address
    assert [reply.address for reply in Judge("a-judge", recorded=cache).ask(requests("a", "b"))] == ["", ""]


@pytest.mark.parametrize("left", [b'{"key": "x", "rep', b'{"key": "y", "reply": "6 6"}', b""])
def test_what_a_killed_run_left_of_a_line(tmp_path: Path, left: bytes) -> None:
    cache = tmp_path / "replies.jsonl"
    with JudgeServer(lambda prompt, _: prompt.upper()) as server:
        judge = quick(server, cache=cache)
        judge.ask(requests("a"))
        cache.write_bytes(cache.read_bytes() + left)
        judge.ask(requests("a", "b"))
    assert server.prompts == ["a", "b"]
    assert sorted(text for text, _ in read_replies(cache).values()) == sorted(
        ["A", "B", *(["6 6"] if b"6 6" in left else [])]
    )
    assert cache.read_bytes().endswith(b"\n")


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    cache.write_text('{"key": "x", "reply": "8 7"}\n{"key": "y"}\n')
    with pytest.raises(UsageError, match=r"replies.jsonl, line 2: expected .* mend or delete the line"):
        Judge("a-judge", "http://127.0.0.1:9/v1", cache=cache).ask(requests("q"))


CUT_RUN = """
import sys
from pathlib import Path
from qwen2_audio.evaluation.judge import ALONE, Judge, Request
judge = Judge("a-judge", sys.argv[1], cache=Path(sys.argv[2]), concurrency=1)
judge.ask([Request(str(n), ALONE, str(n)) for n in range(8)])
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    with JudgeServer(lambda prompt, times: Hang if prompt == "5" and not times else prompt * 2) as server:
        run = subprocess.Popen([sys.executable, "-c", CUT_RUN, server.url, str(cache)])
        while len(server.bodies) < 6 and run.poll() is None:
            time.sleep(0.02)
        run.kill()
        run.wait()
        assert server.prompts == list("012345")
        replies = quick(server, cache=cache).ask([Request(str(n), ALONE, str(n)) for n in range(8)])
    assert [reply.text for reply in replies] == ["00", "11", "22", "33", "44", "55", "66", "77"]
    assert sorted(server.prompts[6:]) == ["5", "6", "7"]
