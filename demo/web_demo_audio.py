"""The web page, started as the original's demo is: python demo/web_demo_audio.py. `qwen2-audio ui` has more options."""

from __future__ import annotations

import argparse

from qwen2_audio.cli.main import main as run


def main() -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Talk with Qwen2-Audio in the browser")
    parser.add_argument(
        "-c",
        "--checkpoint-path",
        default="mini",
        help="mini, a checkpoint folder, or a name on a hub such as Qwen/Qwen2-Audio-7B-Instruct; default: %(default)s",
    )
    parser.add_argument("--cpu-only", action="store_true", help="leave the GPU alone")
    parser.add_argument("--inbrowser", action="store_true", help="open the page in a new tab")
    parser.add_argument("--server-port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--server-name", default="127.0.0.1", help="address to listen at; default: %(default)s")
    given = parser.parse_args()
    command = ["ui", "--model", given.checkpoint_path, "--host", given.server_name, "--port", str(given.server_port)]
    if given.cpu_only:
        command += ["--device", "cpu"]
    if given.inbrowser:
        command.append("--inbrowser")
    run(command)


if __name__ == "__main__":
    main()
