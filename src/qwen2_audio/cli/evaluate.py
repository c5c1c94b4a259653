"""`qwen2-audio evaluate`: measure a model, score answers that are there already, compare two runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from qwen2_audio.cli import evaluate_options as own
from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import open_assistant
from qwen2_audio.cli.terminal import say
from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from qwen2_audio.evaluation.answerers import Answerer
    from qwen2_audio.evaluation.judge import Judge
    from qwen2_audio.evaluation.run import Progress
    from qwen2_audio.evaluation.samples import Answer, Sample
    from qwen2_audio.evaluation.task import Task


class _RunUnlessNamed(TyperGroup):
    """`evaluate TASK...` is `evaluate run TASK...`: what is neither a command nor a plea for help names a task."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help=(
        "Measure a model on published data sets or your own.\n\n"
        "`qwen2-audio evaluate TASK...` is short for `qwen2-audio evaluate run TASK...`."
    ),
)


@evaluate.command()
def run(
    names: own.Tasks = None,
    data: own.Data = None,
    out: own.Out = None,
    limit: own.Limit = None,
    batch_size: own.BatchSize = 16,
    max_new_tokens: own.MaxNewTokens = 256,
    long_audio: own.LongAudio = "cut",
    profile: own.Profile = "official",
    task: own.OwnRows = None,
    metric: own.OwnMetric = None,
    chat: own.OwnChat = False,
    language: own.OwnLanguage = None,
    model: opt.Model = opt.DEFAULT_MODEL,
    adapter: opt.Adapter = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    revision: opt.Revision = None,
    offline: opt.Offline = False,
    base_url: own.BaseUrl = None,
    api_key_env: own.ApiKeyEnv = None,
    judge_url: own.JudgeUrl = None,
    judge_model: own.JudgeModel = None,
    judge_mode: own.JudgeMode = None,
    judge_key_env: own.JudgeKeyEnv = None,
    judge_replies: own.JudgeReplies = None,
) -> None:
    """Ask a model everything, score its answers, write a report. The last line of the output is the run's folder.

    The same command goes on where a run was stopped. Started by accelerate or torchrun, all processes share the work.
    """
    from qwen2_audio.evaluation.run import EvaluateConfig
    from qwen2_audio.evaluation.run import evaluate as start

    tasks = _tasks(names or [], task or [], metric, chat=chat, language=language or "")
    if out is None:
        raise UsageError("give --out RUN, a folder for the run's answers and its report")
    judge = _judge(judge_url, judge_model, judge_mode, judge_key_env, judge_replies, out, tasks)
    config = EvaluateConfig(tasks, out, data, batch_size=batch_size, limit=limit, profile=profile, judge=judge)

    def open_answerer() -> Answerer:
        from qwen2_audio.evaluation.answerers import AssistantAnswerer
        from qwen2_audio.remote import address, opening

        place: dict[str, Any] = {"revision": revision, "offline": offline, "adapter": adapter}
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "long_audio": long_audio}
        if base_url is not None or address.is_address(model):
            opening.refuse_local_options(device=device, dtype=dtype, quantize="none", **place)
            return _on_server(base_url, model, api_key_env, how)
        if api_key_env is not None:
            raise UsageError(f"--api-key-env is for a server; the model is {model}, here; leave it out")
        opened = open_assistant(model, device=_own_device(device), dtype=dtype, **place)
        return AssistantAnswerer(opened, f"{model} with {adapter.name}" if adapter else model, **how)

    folder = start(config, _OnceAsked(open_answerer), say, _show)
    if os.environ.get("RANK", "0") == "0":
        print(folder, flush=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # all is written; torch's own threads may abort a tidy exit
        os._exit(0)


@evaluate.command()
def score(
    file: own.ScoredFile,
    metric: own.ScoredMetric,
    language: own.ScoredLanguage = None,
    profile: own.Profile = "official",
    as_json: opt.Json = False,
) -> None:
    """Score answers that are there already; no model is needed. One line a source."""
    from qwen2_audio.evaluation.samples import read_answers
    from qwen2_audio.evaluation.scoring import score as score_answers

    scores = score_answers(read_answers(file), metric, profile=profile, language=language)
    if as_json:
        listed = [{key: value for key, value in asdict(one).items() if key != "parts"} for one in scores]
        for row in listed:
            row["value"] = row["value"] if row["samples"] else None  # JSON knows no nan
        print(json.dumps(listed, ensure_ascii=False))
        return
    for one in scores:
        print(one.line())


@evaluate.command()
def compare(run_a: own.RunA, run_b: own.RunB) -> None:
    """Which of two runs is better, and whether that could be chance."""
    from qwen2_audio.evaluation.compare import compare_runs

    print(compare_runs(run_a, run_b))


class _OnceAsked:
    """An answerer that is opened when it is first needed: after all that can be wrong with the data has been looked at."""

    def __init__(self, open_answerer: Callable[[], Answerer]) -> None:
        self._open = cache(open_answerer)

    def answer(self, samples: Sequence[Sample]) -> Iterable[Answer]:
        return self._open().answer(samples)

    def identity(self) -> dict[str, Any]:
        return self._open().identity()


def _tasks(
    names: Sequence[str], files: Sequence[Path], metric: str | None, *, chat: bool, language: str
) -> tuple[Task, ...]:
    from qwen2_audio.evaluation.task import METRICS, own_task
    from qwen2_audio.evaluation.tasks import find_tasks

    written = next((name for name in names if name.endswith((".jsonl", ".json"))), None)
    if written is not None:
        raise UsageError(f"{written} is no task's name; rows of your own are given as --task {written} --metric wer")
    if not names and not files:
        raise UsageError(
            "name a task, such as librispeech_test_clean, or give your own rows with --task FILE --metric wer"
        )
    if files and metric is None:
        raise UsageError(f"--task {files[0]} needs --metric, one of {', '.join(METRICS)}")
    if not files and (metric is not None or chat or language):
        raise UsageError(
            "--metric, --chat and --language are for rows of your own (--task FILE); named tasks have theirs"
        )
    named = {task.name: task for name in names for task in find_tasks(name)}  # a group may hold what is also named
    users = [own_task(file, metric or "", chat=chat, language=language) for file in files]
    return (*named.values(), *users)


def _judge(
    url: str | None, model: str | None, mode: str | None, key_env: str | None, replies: Path | None, out: Path,
    tasks: Sequence[Task],
) -> Judge | None:  # fmt: skip
    """A judge at an address, whose replies are kept; or one of whom there are only replies; or none."""
    if url is None and replies is None and (model or mode or key_env):
        raise UsageError(
            "--judge-model, --judge-mode and --judge-key-env are of a judge; give --judge-url or --judge-replies"
        )
    if url is None and key_env:
        raise UsageError("--judge-key-env is for a server; recorded replies need no key: leave it out")
    if url is None and replies is None:
        return None
    if all(task.metric != "judge" for task in tasks):
        raise UsageError("none of these tasks is judged; leave the judge out")
    from qwen2_audio.evaluation.judge import Judge

    model, mode = model or "gpt-4-0125-preview", mode or "deterministic"
    if url is None:
        return Judge(model, mode=mode, recorded=replies, say=say)
    return Judge(model, url, mode=mode, key_variable=key_env, cache=replies or out / "judge_replies.jsonl", say=say)


def _on_server(url: str | None, model: str, key_variable: str | None, how: dict[str, Any]) -> Answerer:
    """A model of the server at `url`, or one that is given as openai:URL."""
    from qwen2_audio.evaluation.server_answerer import OpenAIAnswerer
    from qwen2_audio.remote.address import is_address
    from qwen2_audio.remote.opening import open_remote

    if url is not None and is_address(model):
        raise UsageError(f"two servers are named, --base-url {url} and --model {model}; give one")
    if url is None:
        remote = open_remote(model, key_variable=key_variable)
        remote.close()
        url, model = remote.url, remote.served.name
    return OpenAIAnswerer(url, model, key_variable=key_variable, **how)


def _own_device(device: str) -> str:
    """With several processes on a machine with GPUs, each has its own."""
    local = os.environ.get("LOCAL_RANK")
    if device not in ("auto", "cuda") or local is None:
        return device
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else device


def _show(progress: Progress) -> None:
    """One line that is written over on a terminal."""
    if not sys.stderr.isatty():
        return
    left = "" if progress.seconds_left is None else f", {_clock(progress.seconds_left)} left"
    score = "" if progress.score is None else f", score so far {progress.score:.4f}"
    line = f"{progress.task}: {progress.done} of {progress.samples}{left}{score}"
    typer.echo(f"\r\x1b[K{line}", nl=progress.done == progress.samples, err=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
