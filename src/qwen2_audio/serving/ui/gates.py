"""What Gradio may take from a visitor: files that were uploaded here, and nothing else."""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr
from gradio import processing_utils, route_utils


class OwnFile(route_utils.GradioUploadFile):
    """A file that is being uploaded; two of the same content lie in different places, for each is removed once it was heard."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.sha.update(secrets.token_bytes(16))  # its folder is named after this


def narrow(page: gr.Blocks) -> None:
    """Let no event of the page read another file, or fetch an address, past the limits of `Media`.

    An event names its files by paths, and whoever writes it by hand can name any. Gradio itself would fetch addresses whole,
    and reads every file of this machine as long as it does not know that the page is served. It has no setting for either, so
    its functions are replaced, for all that this process serves with it.
    """
    page.has_launched = True  # from here on it looks whether a path is one of an upload
    fetching: Any = processing_utils
    fetching.async_ssrf_protected_get = fetching.async_ssrf_protected_download = _refuse
    uploading: Any = route_utils
    uploading.GradioUploadFile = OwnFile


async def _refuse(url: str, *_: object, **__: object) -> str:
    raise gr.Error(
        f"only uploaded files are taken, got the address {url:.80}; write it into the message instead",
        print_exception=False,
    )
