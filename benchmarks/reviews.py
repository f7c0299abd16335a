"""FDU-MTL: 16 domains of product reviews, one CSV pair a domain; skipped with a reason where the data is absent.

One row: domain "books", label "1", text "this is one of the best books i have read in a long time ..."
"""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
LABELS = {"0": "negative", "1": "positive"}


def data_folder() -> Path:
    """`../shared/data/fdu_mtl` beside the checkout, or the folder in LORA_FT_REAL_DATA."""
    folder = Path(os.environ.get("LORA_FT_REAL_DATA", ROOT.parent / "shared" / "data")) / "fdu_mtl"
    if not folder.is_dir():
        raise SystemExit(f"skipped: no reviews at {folder}; set LORA_FT_REAL_DATA to the folder that holds fdu_mtl/")
    return folder


def domains() -> list[str]:
    """The 16 domains, sorted."""
    with gzip.open(data_folder() / "dev.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        return sorted({row["domain"] for row in csv.DictReader(stream)})


def write_domain(domain: str, folder: Path) -> dict[str, Path]:
    """Writes train.csv and dev.csv of one domain and returns their paths; empty texts are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ("train", "dev"):
        with gzip.open(data_folder() / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["domain"] == domain and row["text"].strip()]
        files[split] = folder / f"{split}.csv"
        with files[split].open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows((row["text"], LABELS[row["label"]]) for row in rows)
    return files
