"""The data doctor on real data: what it finds in 25,380 reviews and how long it takes, and how it finds flipped labels.

Command:  python -m benchmarks.doctor [--without-label-errors]
Needs the reviews of `benchmarks/reviews.py`; skips with a reason where they are absent.
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.real_data import ROOT
from benchmarks.reviews import reviews, write_rows
from lora_ft.assemble.examined import examine
from lora_ft.assemble.examined_short import examined_in_short
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.suspected import label_suspects
from lora_ft.cli.environment import read_checked
from lora_ft.recipe.schema import Recipe

RECIPE = ROOT / "recipes" / "text-classification" / "minilm-shop_reviews-lora.yaml"
SHOP = ROOT / "recipes" / "data" / "shop_reviews" / "train.csv"
FLIPPED = 0.1
SEEDS = (0, 1, 2)
OTHER = {"negative": "positive", "positive": "negative"}

Rows = Sequence[tuple[str, str]]


def labelled(split: str, *, domain: str | None = None) -> Rows:
    """Text and label of all domains, or of one; empty texts included, which the doctor has to find."""
    return [(row["text"], row["label"]) for row in reviews(split) if domain in (None, row["domain"])]


def recipe(folder: Path, **splits: Rows) -> Recipe:
    """The demo's recipe on other rows."""
    files = {split: str(write_rows(folder / f"{split}.csv", rows)) for split, rows in splits.items()}
    said = ", ".join(f"{split}: {file}" for split, file in files.items())
    return read_checked(RECIPE, [f"dataset.data_files={{{said}}}"])


def all_reviews(folder: Path) -> None:
    """What is found in the reviews of all domains, and the seconds of the whole and of the short look."""
    train, dev = labelled("train"), labelled("dev")
    asked = recipe(folder, train=train, validation=dev)
    found = examine(asked)
    print(f"fdu_mtl: {len(train)} train and {len(dev)} dev rows: {found.seconds:.1f} s, files read, base not loaded")
    for one in found.findings:
        print(f"  {one.severity:<8} {one.split:<11} {one.name:<24} {one.count:>5} {one.share:>7.2%}")
    known = {text for text, _ in train}
    twins = sum(text in known for text, _ in dev if text.strip())
    print(f"  dev rows whose text is in train, character by character (a set of texts): {twins}")
    print(f"  max_length {found.max_length}, suggested {found.suggested}")
    prepared = prepare(recipe(folder, train=train[:20_000], validation=dev))
    began = time.perf_counter()
    lines = examined_in_short(prepared)
    print(
        f"before training: {len(lines)} lines, {time.perf_counter() - began:.2f} s for 20000 train "
        f"and {len(dev)} dev rows"
    )
    for line in lines:
        print(f"  {line[:150]}")


def flipped(name: str, rows: Rows, folder: Path) -> None:
    """Recall and precision of the label-error finder on rows of which a tenth got another label."""
    for seed in SEEDS:
        wrong = set(random.Random(seed).sample(range(len(rows)), round(FLIPPED * len(rows))))
        given = [(text, OTHER[label] if row in wrong else label) for row, (text, label) in enumerate(rows)]
        prepared = prepare(recipe(folder, train=given, validation=rows[:20]))
        rows_of, features = {"train": prepared.rows["train"]}, {"train": prepared.features["train"]}
        only = replace(prepared, rows=rows_of, features=features)
        began = time.perf_counter()
        found = label_suspects(only, [label for _, label in given])
        hit = len(wrong & set(found.rows.tolist()))
        surest = found.rows[: len(wrong)].tolist()
        print(
            f"{name}, seed {seed}: {len(rows)} rows, {len(wrong)} flipped, {len(found.rows)} named: recall "
            f"{hit / len(wrong):.3f}, precision {hit / max(1, len(found.rows)):.3f}; of the {len(surest)} surest "
            f"{len(wrong & set(surest)) / max(1, len(surest)):.3f}; classifier right in {found.accuracy:.3f} of the "
            f"given labels; {time.perf_counter() - began:.0f} s"
        )


def main() -> None:
    """Runs all of it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        all_reviews(folder)
        if "--without-label-errors" in sys.argv:
            return
        with SHOP.open(encoding="utf-8", newline="") as stream:
            shop = [(row["text"], row["label"]) for row in csv.DictReader(stream)]
        flipped("shop_reviews", shop, folder)
        flipped("fdu_mtl books", [row for row in labelled("train", domain="books") if row[0].strip()], folder)


if __name__ == "__main__":
    main()
