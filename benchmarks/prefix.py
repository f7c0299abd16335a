"""Adapters in the top layers alone, with and without the prefix cache: domain books, MiniLM, top 2 of 6 layers.

    python -m benchmarks.prefix [--rounds 1] [--epochs 5] [--rows N] [--usual] [--seed 0]

All run in one go, each in a process of its own, in turn. The seconds include those in which the rows go through the
layers below before the first step. `--usual` adds the usual script, whose adapters are in all layers; `--rows` takes
the first rows of each split alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contender import Measured, run
from benchmarks.real_data import packaged_base
from benchmarks.reviews import write_domain
from lora_ft.models.precision import plan_precision

TOP = "peft_config.layers_to_transform=[4, 5]"
ALL_LAYERS, WITHOUT, WITH, USUAL = "all layers", "top 2, no cache", "top 2, prefix cache", "usual script, all layers"


def cut(file: Path, rows: int) -> None:
    """Leaves the first rows of a CSV."""
    with file.open(encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(table[: rows + 1])


def seconds(result: dict[str, Any]) -> float:
    """Of training, evaluations and what the prefix cache took before the first step."""
    cache = result.get("lean", {}).get("prefix_cache")
    return float(result["train_s"]) + (float(cache["seconds"]) if isinstance(cache, dict) else 0.0)


def row(name: str, runs: list[Measured]) -> str:
    """One line of the table: medians over the rounds, the mean of the accuracies."""
    train_s = statistics.median(seconds(one.result) for one in runs)
    wall_s = statistics.median(one.wall_s for one in runs)
    cpu_s = statistics.median(one.cpu_s for one in runs)
    peak_mb = statistics.median(one.peak_mb for one in runs)
    accuracy = statistics.mean(one.result["dev_accuracy"] for one in runs)
    return f"{name:<26}{train_s:>9.1f}{wall_s:>9.1f}{cpu_s:>9.1f}{peak_mb:>9.0f}{accuracy:>10.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--usual", action="store_true")
    options = parser.parse_args()
    base = packaged_base()
    folder = Path(tempfile.mkdtemp(prefix="lora_ft-prefix-"))
    files = write_domain("books", folder)
    if options.rows:
        for file in files.values():
            cut(file, options.rows)
    given = [str(files["train"]), str(files["dev"]), "--base", base]
    same = [f"training_args.num_train_epochs={options.epochs}", f"training_args.seed={options.seed}"]
    contenders = {
        name: ["benchmarks.our_run", *given, "--output", str(folder / f"run-{number}"), *same, *overrides]
        for number, (name, overrides) in enumerate(
            {WITHOUT: [TOP, "lean.prefix_cache=false"], WITH: [TOP], ALL_LAYERS: []}.items()
        )
    }
    if options.usual:
        flags = ["--bf16"] if plan_precision().name == "bfloat16" else []
        own = ["--epochs", str(options.epochs), "--seed", str(options.seed), *flags]
        contenders[USUAL] = ["benchmarks.usual_script", *given, *own]
    measured: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, command in contenders.items():
            measured[name].append(run(command))
            print(row(name, measured[name][-1:]), flush=True)
    cache = measured[WITH][0].result["lean"]["prefix_cache"]
    print(
        f"\n{options.rounds} round(s), {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, medians; {cache}"
    )
    print(f"{'contender':<26}{'train s':>9}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'dev acc':>10}")
    for name, runs in measured.items():
        print(row(name, runs))
    took = {name: statistics.median(seconds(one.result) for one in runs) for name, runs in measured.items()}
    for name in took.keys() - {WITH}:
        print(f"{name} / {WITH}: {took[name] / took[WITH]:.2f} times the training time")


if __name__ == "__main__":
    main()
