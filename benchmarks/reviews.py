"""FDU-MTL: 16 domains of product reviews, one CSV pair a domain; skipped with a reason where the data is absent.

One row: domain "books", label "1", text "this is one of the best books i have read in a long time ..."
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.real_data import real_data

LABELS = {"0": "negative", "1": "positive"}


def reviews(split: str) -> list[dict[str, str]]:
    """The rows of `train` or `dev`, their labels by name; empty texts included."""
    with gzip.open(real_data("fdu_mtl") / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        return [{**row, "label": LABELS[row["label"]]} for row in csv.DictReader(stream)]


def domains() -> list[str]:
    """The 16 domains, sorted."""
    return sorted({row["domain"] for row in reviews("dev")})


def write_rows(file: Path, rows: Iterable[tuple[str, str]]) -> Path:
    """A CSV with the columns `text` and `label`."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return file


def write_domain(domain: str, folder: Path) -> dict[str, Path]:
    """Writes train.csv and dev.csv of one domain and returns their paths; empty texts are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ("train", "dev"):
        rows = [row for row in reviews(split) if row["domain"] == domain and row["text"].strip()]
        files[split] = write_rows(folder / f"{split}.csv", ((row["text"], row["label"]) for row in rows))
    return files


def write_short_reviews(folder: Path, counts: Mapping[str, Mapping[str, int]], *, words: tuple[int, int]) -> None:
    """Writes a CSV for each split, of reviews of all domains, always the same; each text is in one row alone.

    Args:
        folder: Where to.
        counts: How many rows of each label a split gets: `{"train": {"negative": 75, "positive": 1425}}`.
        words: The fewest and the most words of a review.
    """
    texts: dict[str, set[str]] = {name: set() for name in LABELS.values()}
    for split in ("train", "dev"):
        for row in reviews(split):
            if words[0] <= len(row["text"].split()) <= words[1]:
                texts[row["label"]].add(row["text"])
    rng = random.Random(0)
    both = texts["negative"] & texts["positive"]  # under both labels, so under none
    left = {name: rng.sample(sorted(found - both), len(found - both)) for name, found in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for split, wanted in counts.items():
        rows = [(left[name].pop(), name) for name, count in wanted.items() for _ in range(count)]
        rng.shuffle(rows)
        write_rows(folder / f"{split}.csv", rows)
