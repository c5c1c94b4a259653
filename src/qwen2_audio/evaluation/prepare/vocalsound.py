"""VocalSound's list of test speakers or test files, and its recordings, to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare.rows import Absent, Row, read_json, read_text
from qwen2_audio.evaluation.task import VSC_PROMPT
from qwen2_audio.evaluation.tasks.vocalsound import LABELS


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the test set, which is that of other speakers; the label stands in a file's name."""
    listed, speakers = folder / "datafiles" / "te.json", folder / "meta" / "te_meta.csv"
    recordings = folder / "audio_16k"
    if listed.is_file():
        names = _names(listed)
    elif speakers.is_file():
        wanted = {line.split(",")[0].strip() for line in read_text(speakers).splitlines()}
        names = sorted(path.name for path in recordings.glob("*.wav") if path.name.split("_")[0] in wanted)
    else:
        absent(listed)
        absent(speakers)
        return
    for name in names:
        speaker, _, rest = PurePosixPath(name).stem.partition("_")
        sound = rest.rpartition("_")[2]
        if sound not in LABELS:
            raise UsageError(f"{recordings / name}: a name ends in one of {', '.join(LABELS)}, got {sound!r}")
        audio = recordings / name
        yield Row(audio.stem, audio, VSC_PROMPT, LABELS[sound], "vocalsound_test", speaker=speaker)


def _names(path: Path) -> list[str]:
    """Names of the files in a list, whose folders are those of its makers."""
    content = read_json(path)
    try:
        return [PurePosixPath(item["wav"]).name for item in content["data"]]
    except (TypeError, KeyError) as error:
        raise UsageError(f'{path} must be {{"data": [{{"wav": ...}}, ...]}}; fetch it again') from error
