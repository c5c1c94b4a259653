"""From answers to segments: what is asked again, what is kept, and that recordings do not disturb each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.longform.listening import Heard, Question, listen
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.conversation import TextPart
from qwen2_audio.processing.speech_windows import Window
from tests.tiny import sound


def window(start: float, seconds: float, *, joined: bool = False) -> Window:
    first = round(start * SAMPLE_RATE)
    samples = sound(seconds)
    return Window(first, samples, (first, first + len(samples)), 0.9, joined)


def answering(text: Callable[[Window], str | Heard]) -> tuple[Callable[[Sequence[Window]], list[Heard]], list[int]]:
    """Somebody who answers, and how many windows it was asked together."""
    together: list[int] = []

    def hear(windows: Sequence[Window]) -> list[Heard]:
        together.append(len(windows))
        answers = [text(window) for window in windows]
        return [Heard(answer, "stop", (1, 2), 5) if isinstance(answer, str) else answer for answer in answers]

    return hear, together


def texts(
    windows: Sequence[Window], text: Callable[[Window], str | Heard], question: Question | None = None
) -> list[str]:
    hear, _ = answering(text)
    return [segment.text for _, segment in listen([(0, w) for w in windows], question or Question(), hear)]


def test_in_order_and_together() -> None:
    hear, together = answering(lambda w: f" {w.start / SAMPLE_RATE:g} ")
    windows = [(number // 3, window(10.0 * number, 1.0)) for number in range(7)]
    found = list(listen(windows, Question(), hear, at_once=3))
    assert [(number, segment.text) for number, segment in found] == [(n // 3, f"{10 * n}") for n in range(7)]
    assert together == [3, 3, 1]
    assert found[1][1] == Segment(10.0, 11.0, "10", "stop", (1, 2), 5, 0.9)


def test_windows_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def windows() -> object:
        for number in range(10):
            taken.append(number)
            yield 0, window(10.0 * number, 0.5)

    hear, _ = answering(lambda w: "x")
    next(iter(listen(windows(), Question(), hear, at_once=2)))  # type: ignore[arg-type]
    assert taken == [0, 1]


def test_running_on_is_asked_again_by_halves() -> None:
    def text(w: Window) -> str | Heard:
        return Heard("on and on", "length", (7,) * 20) if w.seconds > 3 else f"{w.seconds:.1f}"

    found = texts([window(0, 4.0)], text)
    assert len(found) >= 2 and sum(map(float, found)) == 4.0
    limited = Question(options=GenerationOptions(max_new_tokens=2))
    assert texts([window(0, 4.0)], lambda w: Heard("cut as asked", "length", (7, 8)), limited) == ["cut as asked"]


def test_what_cannot_be_halved_is_kept_up_to_the_circle() -> None:
    circle = Heard("So it goes. " + "Thank you so much. " * 6, "length", (1, *[2, 3] * 8), 5)
    hear, _ = answering(lambda w: circle)
    ((_, segment),) = listen([(0, window(0, 1.5))], Question(), hear)
    assert (segment.text, segment.finish_reason) == ("So it goes. Thank you so much.", "length")
    assert segment.tokens == (1, 2, 3)


def test_more_than_could_be_said_is_nothing() -> None:
    assert texts([window(0, 0.3)], lambda w: "Thank you for watching and do not forget to subscribe") == [""]


def test_an_echo_of_the_window_before_is_asked_again() -> None:
    line = "Thank you very much for watching."

    def text(w: Window) -> str:
        return line if w.seconds > 3 else f"{w.start / SAMPLE_RATE:.0f}"

    first, *rest = texts([window(0, 4.0), window(10, 4.0)], text)
    assert first == line and rest[0] == "10" and line not in rest
    halves = iter(["Thank you very", "much for watching."])
    said = texts([window(0, 4.0), window(10, 4.0)], lambda w: line if w.seconds > 3 else next(halves))
    assert said == [line, line]  # it was said twice: the halves agree
    hear, _ = answering(text)
    both = [(0, window(0, 4.0)), (1, window(0, 4.0))]  # another recording may well say the same
    assert [segment.text for _, segment in listen(both, Question(), hear)] == [line, line]


def test_words_doubled_where_speech_was_cut() -> None:
    said = {0.0: "and the repetition", 4.0: "repetition ends"}
    assert texts([window(0, 4), window(4, 4, joined=True)], lambda w: said[w.start / SAMPLE_RATE])[1] == "ends"
    assert texts([window(0, 4), window(4, 4)], lambda w: said[w.start / SAMPLE_RATE])[1] == "repetition ends"


def test_the_window_after_halves_is_compared_with_what_was_kept() -> None:
    circle = Heard("we spoke of the same thing the same thing the same thing", "length", (1, *[7, 8, 9] * 8))

    def text(halves: list[str], after: str) -> list[str]:
        answers = iter(halves)

        def say(w: Window) -> str | Heard:
            return after if w.start == 4 * SAMPLE_RATE else circle if w.seconds > 3 else next(answers)

        return texts([window(0, 4), window(4, 4, joined=True)], say)

    assert text(["we spoke of", "the repetition"], "repetition ends") == ["we spoke of", "the repetition", "ends"]
    assert text(["we spoke", "and he left."], "The same thing again")[-1] == "The same thing again"


def test_the_window_after_nothing_loses_nothing() -> None:
    def say(w: Window) -> str:
        return "thank you for watching and do not forget to subscribe" if w.start == 0 else "to subscribe is fine"

    assert texts([window(0, 0.3), window(0.3, 4, joined=True)], say) == ["", "to subscribe is fine"]


def test_question() -> None:
    question = Question("Do it.", GenerationOptions(temperature=0.5))
    asked = question.conversation(window(0, 2.0))
    assert asked.messages[0].parts[1] == TextPart("Do it.")
    np.testing.assert_array_equal(asked.audios[0][0], sound(2.0))  # type: ignore[index]
    options = question.options_for(window(0, 2.0))
    assert (options.max_new_tokens, options.stop_loops, options.temperature) == (32, True, 0.5)
    given = Question(options=GenerationOptions(max_new_tokens=7))
    assert given.options_for(window(0, 2.0)).max_new_tokens == 7


def with_a_pause() -> Window:
    """Six seconds of speech, two sentences with a pause between them."""
    samples = np.concatenate([sound(3.0), np.zeros(SAMPLE_RATE, np.float32), sound(3.0)])
    second = SAMPLE_RATE
    stretches = ((0, 3 * second), (4 * second, 7 * second))
    return Window(0, samples, (0, 7 * second), 0.9, stretches=stretches)


def test_what_stops_at_a_pause_is_heard_again_in_halves() -> None:
    halves = {0: "One two three four five six.", 1: "Seven eight nine ten eleven twelve."}
    spoken = texts([with_a_pause()], lambda w: halves[0] if w.seconds > 5 else halves[int(w.start > 0)])
    assert spoken == list(halves.values())


def test_few_words_are_kept_where_there_are_no_more() -> None:
    hear, together = answering(lambda w: "One two three." if w.seconds > 5 else "One two.")
    found = [segment.text for _, segment in listen([(0, with_a_pause())], Question(), hear)]
    assert found == ["One two three."] and together == [1, 2]
    many = "One two three four five six seven eight nine ten eleven twelve."
    assert texts([with_a_pause()], lambda w: many if w.seconds > 5 else "wrong " * 9) == [many]
    assert texts([with_a_pause()], lambda w: "" if w.seconds > 5 else "wrong") == [""]
