"""Stop strings, whatever pieces the text comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.generation.stopping import StopMatcher

texts = st.text(alphabet="abc ", max_size=30)


@given(text=texts, stops=st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), max_size=3), data=st.data())
def test_shows_everything_before_the_first_stop_and_nothing_after(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    if not matcher.stopped:
        shown += matcher.finish()
    prefix = next((text[:i] for i in range(len(text) + 1) if any(text[:i].endswith(stop) for stop in stops)), None)
    if prefix is None:
        assert shown == text
        assert not matcher.stopped
    else:
        assert matcher.stopped
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    assert matcher.text == shown


def test_holds_back_only_what_could_become_a_stop() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push(piece) for piece in ("hello E", "N", "d E", "ND more")] == ["hello ", "", "ENd ", ""]
    assert matcher.stopped
