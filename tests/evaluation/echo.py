"""A run whose model is this file: `python echo.py ROWS OUT LOG SECONDS` answers two of three words right, slowly.

Started by the tests as processes that are killed, or that share the work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen2_audio.evaluation import plots
from qwen2_audio.evaluation.run import EvaluateConfig, evaluate
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.task import own_task


class Echo:
    """Repeats the reference with its last word changed; notes in `log` who was asked, and by which process."""

    def __init__(self, log: Path, seconds: float, model: str = "echo") -> None:
        self.log, self.seconds, self.model = log, seconds, model

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        time.sleep(self.seconds)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write("".join(f"{os.environ.get('RANK', '0')} {sample.id}\n" for sample in samples))
        return [self.reply(sample) for sample in samples]

    def reply(self, sample: Sample) -> Answer:
        if "unreadable" in sample.gt:
            return Answer(sample, "", "no such file")
        return Answer(sample, " ".join([*sample.gt.split()[:-1], "wrong"]))

    def identity(self) -> dict[str, Any]:
        return {"model": self.model}


if __name__ == "__main__":
    # most of the time would go into drawing, which test_report.py sees to
    plots.save = lambda _figure, folder, name: (folder / f"{name}.svg").write_text("<svg></svg>")
    rows, out, log, seconds = sys.argv[1:]
    task = own_task(Path(rows), "wer", language="en")
    evaluate(EvaluateConfig((task,), Path(out), batch_size=3), Echo(Path(log), float(seconds)))
