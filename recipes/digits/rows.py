"""Split spoken digits (FSDD) into rows to learn from and rows to measure with.

    python recipes/digits/rows.py FSDD_FOLDER runs/digits

FSDD_FOLDER holds a manifest.jsonl in the official evaluation's row shape, with the split ("train" or "test") in every row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.folder / "manifest.jsonl").read_text().splitlines()]
    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        part = [{**row, "audio": str((args.folder / row["audio"]).resolve())} for row in rows if row["split"] == split]
        (args.out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        print(f"{split}: {len(part)} rows")


if __name__ == "__main__":
    main()
