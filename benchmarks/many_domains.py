"""One mixed stream of 16 domains over a pool of 16 adapters: as right as each alone, beside one adapter for all.

    python -m benchmarks.all_domains                       # trains the 16 adapters, unless they are there
    python -m benchmarks.many_domains [--adapters FOLDER] [--pooled FOLDER] [--batch-size 32]

The 3,200 dev reviews are shuffled and answered in one pass over the pool, each by the adapter of its domain; then each
domain alone by its adapter, opened the usual way. Beside it: one adapter trained on the training rows of all domains
for one epoch (`--pooled`; trained if the folder is not there), and the router, which picks the nearest centroid.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from benchmarks.contender import run
from benchmarks.real_data import ROOT
from benchmarks.reviews import LABELS, reviews, write_rows
from lora_ft.adapters.pool_folder import read_pool
from lora_ft.assemble.pooled import open_pool
from lora_ft.assemble.router import make_router
from lora_ft.assemble.saved import OpenOptions, open_adapter

BASE = "sentence-transformers/all-MiniLM-L6-v2"


def written(split: str) -> list[dict[str, str]]:
    """All reviews of a split, but for empty ones."""
    return [row for row in reviews(split) if row["text"].strip()]


def train_pooled(folder: Path) -> None:
    """One adapter on all domains, one epoch: five times the steps of a single domain's three."""
    folder.mkdir(parents=True)
    files = []
    for split in ("train", "dev"):
        rows = ((row["text"], row["label"]) for row in written(split))
        files.append(write_rows(folder / f"{split}.csv", rows))
    arguments = [*map(str, files), "--base", BASE, "--output", str(folder / "run")]
    run(["benchmarks.our_run", *arguments, "training_args.num_train_epochs=1"])


def accuracies(rows: Sequence[Mapping[str, str]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each domain, and on average over the domains."""
    hits: dict[str, list[bool]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        hits.setdefault(row["domain"], []).append(prediction["label"] == row["label"])
    found = {domain: sum(values) / len(values) for domain, values in sorted(hits.items())}
    return {**found, "average": sum(found.values()) / len(found)}


def answer_alone(folder: Path, rows: Sequence[Mapping[str, str]], *, batch_size: int) -> list[dict[str, Any]]:
    """Opened the usual way."""
    opened = open_adapter(folder, OpenOptions(offline=True))
    return opened.predict(datasets.Dataset.from_dict({"text": [row["text"] for row in rows]}), batch_size=batch_size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=Path, default=ROOT / "runs" / "all_domains")
    parser.add_argument("--pooled", type=Path, default=ROOT / "runs" / "pooled_domains")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    if not options.adapters.is_dir():
        raise SystemExit(f"no adapters at {options.adapters}: python -m benchmarks.all_domains trains them")
    if not options.pooled.is_dir():
        train_pooled(options.pooled)
    rows = written("dev")
    random.Random(0).shuffle(rows)
    texts = [{"text": row["text"]} for row in rows]

    found = read_pool(options.adapters)
    opened = open_pool(found, OpenOptions(offline=True))
    for name in found.folders:
        opened.member(name)
    started = time.perf_counter()
    mixed = opened.predict(texts, [row["domain"] for row in rows], batch_size=options.batch_size)
    mixed_s = time.perf_counter() - started
    routed = make_router(opened).choose(texts, batch_size=options.batch_size)
    by_router = opened.predict(texts, [choice.adapter for choice in routed], batch_size=options.batch_size)

    alone: list[dict[str, Any]] = [{}] * len(rows)
    started = time.perf_counter()
    for domain, folder in found.folders.items():
        numbers = [number for number, row in enumerate(rows) if row["domain"] == domain]
        answers = answer_alone(folder, [rows[number] for number in numbers], batch_size=options.batch_size)
        for number, prediction in zip(numbers, answers, strict=True):
            alone[number] = prediction
    alone_s = time.perf_counter() - started
    pooled = answer_alone(options.pooled / "run", rows, batch_size=options.batch_size)

    columns = {"mixed": mixed, "alone": alone, "pooled": pooled, "routed": by_router}
    scores = {name: accuracies(rows, predictions) for name, predictions in columns.items()}
    print(f"\n{'domain':<24}" + "".join(f"{name:>10}" for name in columns))
    for domain in scores["mixed"]:
        print(f"{domain:<24}" + "".join(f"{values[domain]:>10.4f}" for values in scores.values()))
    worst = max(
        abs(one["scores"][label] - other["scores"][label])
        for one, other in zip(mixed, alone, strict=True)
        for label in LABELS.values()
    )
    differing = sum(one["label"] != other["label"] for one, other in zip(mixed, alone, strict=True))
    print(f"mixed and alone: {differing} of {len(rows)} labels differ, scores by {worst:.1e} at most")
    right = sum(choice.adapter == row["domain"] for choice, row in zip(routed, rows, strict=True)) / len(rows)
    print(f"router: {right:.4f} of the rows go to the adapter of their own domain")
    print(f"mixed stream {mixed_s:.1f} s; one domain after the other, opened each time, {alone_s:.1f} s")


if __name__ == "__main__":
    main()
