"""Finding a checkpoint: a built-in name, a folder, Hugging Face or ModelScope; fetched if it is not here yet."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen2_audio.checkpoints import mini
from qwen2_audio.checkpoints.load import SINGLE, weight_files
from qwen2_audio.errors import CheckpointError, DownloadError, UsageError

PUBLISHED = ("Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2-Audio-7B")
BUILT_IN = ("mini", "mini-base")
"""`mini`, and `mini-base`: its third-party parts alone, before it learnt to listen (where its training starts)."""
_WEIGHTS = "*.safetensors"
PATTERNS = ["*.json", _WEIGHTS, "*.jinja", "merges.txt"]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def say_on_stderr(message: str) -> None:
    """Where progress goes unless the caller has a better place."""
    print(message, file=sys.stderr, flush=True)


def find_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    weights: bool = True,
    say: Callable[[str], None] = say_on_stderr,
) -> Path:
    """The folder of a model, fetched first if need be.

    Args:
        name: a built-in name, a folder, `OWNER/NAME` or `hf:OWNER/NAME` (Hugging Face), `modelscope:OWNER/NAME`.
        revision: branch, tag or commit of a hub model.
        offline: use only what is on this machine.
        weights: False where the configuration and the tokenizer are enough: a hub's weights are not fetched, nor missed.
        say: told what is being fetched.

    Raises:
        CheckpointError: no such model.
        DownloadError: it could not be fetched.
        UsageError: a revision of something that has none.
    """
    folder = Path(os.path.expanduser(name))
    here = name in BUILT_IN or os.path.isdir(folder)  # os.path: False, too, for names no file system takes
    if revision is not None and here:
        raise UsageError(
            f"revision={revision!r} makes no sense for {name}: only models of a hub have revisions; leave it out"
        )
    if name in BUILT_IN:
        return _built_in(name, offline=offline, say=say)
    if name.startswith("openai:"):
        raise UsageError(f"{name} is a server, whose checkpoint is not here; name a model of this machine or of a hub")
    if name.startswith("modelscope:"):
        return _from_modelscope(
            _repository(name.removeprefix("modelscope:")), revision, offline=offline, weights=weights
        )
    if name.startswith("hf:"):
        return _from_hugging_face(_repository(name.removeprefix("hf:")), revision, offline=offline, weights=weights)
    if here:
        return folder
    if os.path.exists(folder):
        raise CheckpointError(f"{name} is a file; give the checkpoint's folder")
    if _REPOSITORY.fullmatch(name) and not name.startswith("."):
        return _from_hugging_face(name, revision, offline=offline, weights=weights)
    raise CheckpointError(f"unknown model {name!r}: neither a built-in name nor a folder{_nearest(name)}")


def cache_folder() -> Path:
    """Where built-in models are kept: $QWEN2_AUDIO_CACHE, or `qwen2-audio` in the user's cache folder."""
    given = os.environ.get("QWEN2_AUDIO_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen2-audio"


def models_here() -> list[str]:
    """What need not be fetched: built-in models that were put together, and the published ones."""
    found = sorted(file.parent.name for file in cache_folder().glob("*/config.json"))
    for name in (*PUBLISHED, *(f"modelscope:{name}" for name in PUBLISHED)):
        with suppress(CheckpointError):
            find_checkpoint(name, offline=True)
            found.append(name)
    return found


def _nearest(name: str) -> str:
    names = [*BUILT_IN, *PUBLISHED]
    lower = {known.lower(): known for known in names} | {known.split("/")[-1].lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    known = ", ".join(names)
    return (
        f"; did you mean {lower[near[0]]!r}?" if near else f"; known are {known}, hf:OWNER/NAME, modelscope:OWNER/NAME"
    )


def _repository(name: str) -> str:
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name!r} is not of the form OWNER/NAME{_nearest(name)}")
    return name


def _built_in(name: str, *, offline: bool, say: Callable[[str], None]) -> Path:
    trained = mini.TRAINED_PART if name == "mini" else None
    stamp = hashlib.sha256("".join(mini.PACKAGES.values()).encode())
    if trained is not None:
        if not trained.exists():
            raise CheckpointError(f"{trained} is missing; reinstall qwen2-audio")
        stamp.update(trained.read_bytes())
    folder = cache_folder() / f"{name}-{stamp.hexdigest()[:12]}"
    if (folder / SINGLE).is_file():
        return folder
    if offline:
        raise DownloadError(
            f"{name} is not on this machine yet and offline was asked for; run: qwen2-audio download {name}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # when it lost its weights: put it together anew
    except OSError as error:
        raise DownloadError(f"cannot write to {folder.parent}: {error.strerror}; set QWEN2_AUDIO_CACHE") from error
    try:
        mini.assemble(folder, trained=trained, say=say)
    except CheckpointError:
        if not (folder / SINGLE).is_file():  # else another process has just put it there
            raise
    _tidy(folder, name)
    return folder


def _tidy(folder: Path, name: str) -> None:
    """Remove older versions of a built-in model, and what was left of attempts that were cut off an hour ago or more."""
    versions = re.compile(re.escape(name) + r"-[0-9a-f]{12}")  # of mini, but not of mini-base
    attempts = re.compile(versions.pattern + r"\.part-\d+|parts-.*")
    for other in folder.parent.iterdir():
        with suppress(FileNotFoundError):  # another process may be tidying, too
            cut_off = attempts.fullmatch(other.name) and time.time() - other.stat().st_mtime > 3600
            if other != folder and (cut_off or versions.fullmatch(other.name)):
                shutil.rmtree(other, ignore_errors=True)


def _patterns(weights: bool) -> list[str]:
    return [pattern for pattern in PATTERNS if weights or pattern != _WEIGHTS]


def _whole(name: str, folder: Path) -> Path:
    """The folder of a hub's model; an error when its weights are not all there, as after a fetch without them."""
    if (folder / "config.json").is_file():
        try:
            weight_files(folder)
        except CheckpointError as error:
            raise DownloadError(f"{name} is not whole on this machine: {error}") from error
    return folder


def _from_hugging_face(name: str, revision: str | None, *, offline: bool, weights: bool) -> Path:
    """huggingface_hub resumes, shows progress, and honours HF_ENDPOINT (a mirror), HF_HOME, HF_HUB_OFFLINE, HF_TOKEN."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=_patterns(weights), local_files_only=offline)
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} cannot be the name of a model on Hugging Face{_nearest(name)}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision!r} on Hugging Face; check the name") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"Hugging Face has no model {name!r} (or it is private: set HF_TOKEN){_nearest(name)}"
        ) from error
    except LocalEntryNotFoundError as error:
        what = "offline was asked for" if offline else "the hub cannot be reached"
        raise DownloadError(
            f"{name} is not on this machine and {what}; check the network, set HF_ENDPOINT to a mirror, "
            f"or use modelscope:{name}{_nearest(name)}"
        ) from error
    except Exception as error:  # its own, httpx's, hf_xet's RuntimeError (a full disk, too), OSError
        raise _failed(name, "Hugging Face", error) from error
    return _whole(name, Path(found)) if weights else Path(found)


def _from_modelscope(name: str, revision: str | None, *, offline: bool, weights: bool) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise DownloadError('ModelScope needs its own package: pip install "qwen2-audio[modelscope]"') from None
    given: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        found = snapshot_download(name, allow_patterns=_patterns(weights), local_files_only=offline, **given)
    except Exception as error:  # modelscope raises many kinds, bare ones among them
        raise _failed(name, "ModelScope", error) from error
    return _whole(f"modelscope:{name}", Path(found)) if weights else Path(found)


def _failed(name: str, hub: str, error: Exception) -> DownloadError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DownloadError(
        f"could not fetch {name} from {hub}: {reason}; check network and free disk space, then run it again (it resumes)"
    )
