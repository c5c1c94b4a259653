"""An hour of real clips as one recording: what is lost at the cuts, how exact the times are, how much memory it takes.

    python benchmarks/long_audio.py --data FOLDER --model mini --minutes 60

FOLDER holds `librispeech_excerpt`; the clips of --split are shuffled, again and again until there is enough, and written one
after the other with pauses of 0.3 to 2.5 s. The recording is transcribed as a stream, the clips each alone. Printed are

- the word error rate of both (the same clips, as often), and their difference in points;
- the same for each clip cut out of the recording again, as often as it stands there, each time with other 0.4 to 0.6 s before
  its first sound and behind its last, as windows begin and end: the difference to this is what cuts and company cost; the rest
  comes of other silence around the same words, of which a file has but one, and of where frames of 40 ms begin;
- sentences lost at cuts: clips that are understood alone (half of their words are right), and of which fewer than half as many
  words are right in the recording; and the reverse, which no cut explains, for comparison;
- how far the times of segments lie from the truth: segments whose first (last) word is, by alignment, the first (last) of a
  clip, against where speech begins (ends) in it: between its first sound (30 dB below its loudest 0.1 s) and its first loud one
  (15 dB below); where exactly between the two, nobody has written down;
- seconds of sound a second; the peak of resident memory, with the model loaded, after the first minutes, and at the end.

--json prints the figures as one object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant
    from qwen2_audio.longform.segments import Segment

FOLDER = "librispeech_excerpt"
RATE = 16_000
PAUSES = (0.3, 2.5)
AROUND = (0.4, 0.6)
"""Seconds before its first sound and behind its last that a clip is cut out again with; each time others."""
SOUND_DECIBELS, LOUD_DECIBELS = 30.0, 15.0
"""Below the loudest 0.1 s: what is a sound at all, and what is certainly speech."""
FRAME = RATE // 50
UNDERSTOOD = 0.5
"""Share of right words above which a clip is one that can be lost."""
WARM_SECONDS = 180.0


@dataclass(frozen=True)
class Clip:
    """One clip of the set.

    Attributes:
        words: of its transcript, normalised.
        begins, ends: where its speech begins and ends at the earliest and at the latest, in seconds.
    """

    path: Path
    words: list[str]
    begins: tuple[float, float]
    ends: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class Placed:
    """A clip in the recording, which begins at `start` seconds and whose words begin at `word`."""

    clip: Clip
    start: float
    word: int

    @property
    def last_word(self) -> int:
        return self.word + len(self.clip.words) - 1


def words_of(text: str) -> list[str]:
    from qwen2_audio.evaluation.normalizers.transcript import transcript_units

    return transcript_units(text, "en", "clean")


def read_clips(data: Path, split: str, limit: int | None) -> list[Clip]:
    from qwen2_audio.processing.audio import load_audio

    clips = []
    rows = [json.loads(line) for line in (data / FOLDER / "manifest.jsonl").read_text("utf-8").splitlines()]
    for row in [row for row in rows if row["split"] == split][:limit]:
        wave = load_audio(data / FOLDER / row["audio"])
        sound, loud = louder_than(wave, SOUND_DECIBELS), louder_than(wave, LOUD_DECIBELS)
        begins, ends = (sound[0], loud[0]), (loud[1], sound[1])
        clips.append(Clip(data / FOLDER / row["audio"], words_of(row["gt"]), begins, ends, len(wave) / RATE))
    return clips


def louder_than(wave: NDArray[np.float32], decibels: float) -> tuple[float, float]:
    """Where in seconds the first and the last place is that is at most so much quieter than the loudest."""
    power = np.add.reduceat(wave.astype(np.float64) ** 2, np.arange(0, len(wave), FRAME))
    power = np.convolve(power, np.ones(5), "same")
    places = np.flatnonzero(power > power.max() * 10 ** (-decibels / 10))
    return float(places[0]) * FRAME / RATE, float(places[-1] + 1) * FRAME / RATE


def write_recording(clips: Sequence[Clip], minutes: float, path: Path, rng: random.Random) -> list[Placed]:
    """Write the recording, clip by clip, so that it need not be held."""
    import soundfile

    from qwen2_audio.processing.audio import load_audio

    placed: list[Placed] = []
    at, words = 0, 0
    order: list[Clip] = []
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC") as file:

        def put(wave: NDArray[np.float32]) -> None:
            nonlocal at
            file.write(wave)
            at += len(wave)

        while at < minutes * 60 * RATE:
            order = order or rng.sample(clips, len(clips))
            clip = order.pop()
            noise = np.random.default_rng(at).standard_normal(int(rng.uniform(*PAUSES) * RATE), np.float32)
            put(1e-4 * noise)
            placed.append(Placed(clip, at / RATE, words))
            put(load_audio(clip.path))
            words += len(clip.words)
    return placed


def transcribe_long(assistant: Assistant, path: Path, total: float) -> tuple[list[Segment], dict[str, float]]:
    loaded, segments, warm = peak_mebibytes(), [], 0.0
    started, told = time.perf_counter(), 0.0
    for segment in assistant.transcribe_stream(path):
        segments.append(segment)
        if segment.end >= min(WARM_SECONDS, total / 2) and not warm:
            warm = peak_mebibytes()
        if segment.end >= told + 60:
            told = segment.end
            speed = told / (time.perf_counter() - started)
            say(
                f"{told / 60:.1f} of {total / 60:.1f} minutes, {speed:.1f} s of sound a second, {peak_mebibytes():.0f} MiB"
            )
    seconds = time.perf_counter() - started
    memory = {"loaded_mebibytes": loaded, "warm_mebibytes": warm, "peak_mebibytes": peak_mebibytes()}
    return segments, {"speed": total / seconds, **memory}


def transcribe_alone(assistant: Assistant, clips: Sequence[Clip]) -> dict[Path, list[str]]:
    texts: dict[Path, list[str]] = {}
    for start in range(0, len(clips), 16):
        batch = clips[start : start + 16]
        for clip, reply in zip(batch, assistant.transcribe_many([clip.path for clip in batch]), strict=True):
            texts[clip.path] = words_of(reply.text)
        say(f"{len(texts)} of {len(clips)} clips alone")
    return texts


def transcribe_cut_out(
    assistant: Assistant, placed: Sequence[Placed], path: Path, rng: random.Random
) -> list[list[str]]:
    """The words of each clip, alone again, as it lies in the recording."""
    texts: list[list[str]] = []
    for start in range(0, len(placed), 16):
        batch = [(cut_out(item, path, rng.uniform(*AROUND)), RATE) for item in placed[start : start + 16]]
        texts += [words_of(reply.text) for reply in assistant.transcribe_many(batch)]
        say(f"{len(texts)} of {len(placed)} clips cut out again")
    return texts


def cut_out(item: Placed, path: Path, around: float) -> NDArray[np.float32]:
    """The stretch of the recording in which a clip lies with so many seconds around its sound, without speech of others."""
    import soundfile

    begin = max(item.clip.begins[0] - around, -PAUSES[0])
    end = min(item.clip.ends[1] + around, item.clip.seconds + PAUSES[0])
    start = max(round((item.start + begin) * RATE), 0)
    wave, _ = soundfile.read(path, round((item.start + end) * RATE) - start, start, dtype="float32")
    return np.asarray(wave, np.float32)


def compare(
    placed: Sequence[Placed],
    segments: Sequence[Segment],
    alone: dict[Path, list[str]],
    again: Sequence[list[str]],
) -> dict[str, Any]:
    """What is said in the header."""
    from rapidfuzz.distance import Levenshtein

    reference = [word for item in placed for word in item.clip.words]
    heard = [words_of(segment.text) for segment in segments]
    response = [word for words in heard for word in words]
    same = {  # index of a heard word to that of the word said
        block.src_start + n: block.dest_start + n
        for block in Levenshtein.opcodes(response, reference)
        if block.tag == "equal"
        for n in range(block.src_end - block.src_start)
    }
    found = set(same.values())
    lost = gained = 0
    for item in placed:
        here = sum(n in found for n in range(item.word, item.last_word + 1))
        blocks = Levenshtein.opcodes(alone[item.clip.path], item.clip.words)
        by_itself = sum(block.src_end - block.src_start for block in blocks if block.tag == "equal")
        least = UNDERSTOOD * len(item.clip.words)
        if by_itself >= least and here < by_itself / 2:
            lost += 1
            say(f"lost at {item.start:.1f} s: {' '.join(item.clip.words)}; alone: {' '.join(alone[item.clip.path])}")
        gained += here >= least and by_itself < here / 2
    separate = sum(Levenshtein.distance(item.clip.words, alone[item.clip.path]) for item in placed) / len(reference)
    cut = sum(map(Levenshtein.distance, (item.clip.words for item in placed), again)) / len(reference)
    whole = Levenshtein.distance(reference, response) / len(reference)
    return {
        "clips": len(placed),
        "words": len(reference),
        "segments": len(segments),
        "word_error_rate": whole,
        "word_error_rate_alone": separate,
        "difference_points": 100 * (whole - separate),
        "word_error_rate_cut_out": cut,
        "difference_points_cut_out": 100 * (whole - cut),
        "sentences_lost": lost,
        "sentences_lost_alone": gained,
        **time_errors(placed, segments, heard, same),
    }


def time_errors(
    placed: Sequence[Placed], segments: Sequence[Segment], heard: Sequence[list[str]], same: dict[int, int]
) -> dict[str, Any]:
    firsts, lasts = {item.word: item for item in placed}, {item.last_word: item for item in placed}
    starts, ends = [], []
    begins = itertools.accumulate([len(words) for words in heard], initial=0)
    for segment, words, begin in zip(segments, heard, begins, strict=False):
        if words and (first := same.get(begin, -1)) in firsts:
            starts.append(outside(segment.start - firsts[first].start, firsts[first].clip.begins))
        if words and (last := same.get(begin + len(words) - 1, -1)) in lasts:
            ends.append(outside(segment.end - lasts[last].start, lasts[last].clip.ends))
    errors = starts + ends
    return {
        "starts_compared": len(starts),
        "ends_compared": len(ends),
        "largest_start_error": max(starts, default=0.0),
        "largest_end_error": max(ends, default=0.0),
        "median_time_error": statistics.median(errors) if errors else 0.0,
    }


def outside(at: float, interval: tuple[float, float]) -> float:
    """How far a time lies from where it should be."""
    return max(interval[0] - at, at - interval[1], 0.0)


def peak_mebibytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024 * 1024)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from qwen2_audio import load

    clips = read_clips(args.data, args.split, args.limit)
    assistant = load(args.model, device=args.device, dtype=args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        placed = write_recording(clips, args.minutes, path, random.Random(args.seed))
        total = placed[-1].start + placed[-1].clip.seconds
        say(f"{len(placed)} clips, {total / 60:.1f} minutes, {path.stat().st_size >> 20} MiB as FLAC")
        segments, figures = transcribe_long(assistant, path, total)
        again = transcribe_cut_out(assistant, placed, path, random.Random(args.seed))
    alone = transcribe_alone(assistant, list({item.clip.path: item.clip for item in placed}.values()))
    return {"minutes": total / 60, **figures, **compare(placed, segments, alone, again)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the folder that holds {FOLDER}")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="only so many different clips, for a quick try")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{found['minutes']:.1f} minutes, {found['clips']} clips, {found['words']} words, {found['segments']} segments"
    )
    whole, alone = 100 * found["word_error_rate"], 100 * found["word_error_rate_alone"]
    print(f"word error rate {whole:.2f} %, the clips alone {alone:.2f} %: {found['difference_points']:+.2f} points")
    cut, company = 100 * found["word_error_rate_cut_out"], found["difference_points_cut_out"]
    print(f"the clips cut out again: {cut:.2f} %, so that cuts and company cost {company:+.2f} points")
    print(f"sentences lost at cuts: {found['sentences_lost']}; lost alone: {found['sentences_lost_alone']}")
    print(
        f"times: largest error {found['largest_start_error']:.2f} s of {found['starts_compared']} beginnings, "
        f"{found['largest_end_error']:.2f} s of {found['ends_compared']} ends; median {found['median_time_error']:.2f} s"
    )
    print(f"{found['speed']:.1f} s of sound a second")
    memory = [round(found[f"{when}_mebibytes"]) for when in ("loaded", "warm", "peak")]
    print(
        f"peak memory: {memory[0]} MiB with the model loaded, {memory[1]} after the first minutes, {memory[2]} at the end"
    )


if __name__ == "__main__":
    main()
