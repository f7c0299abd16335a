"""Batches of 16 rows against batches of as many tokens: domain books, MiniLM, r 8, all linear layers.

    python -m benchmarks.token_budget [--rounds 1] [--epochs 3] [--seeds 0] [--output FOLDER]

Both train in one process, in turn, for each seed; the budget is chosen so that a step learns of as many tokens in the
mean as one of 16 rows, so that both make about as many steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from benchmarks.our_run import RECIPE
from benchmarks.real_data import packaged_base
from benchmarks.reviews import write_domain
from lora_ft.cli.environment import read_checked
from lora_ft.train.run import RunOptions, train

MOST_ROWS = 256
FILLED = 0.94
"""The share of its budget that a batch has of real tokens in the mean: what the budget is divided by."""


@dataclass(frozen=True)
class Ran:
    """One run: how long each row took, what batches cost, and how good it is."""

    ms_a_row: float
    steps: int
    batches: dict[str, float]
    accuracy: float


def ran(recipe: Path, *, rows: int, epochs: int, overrides: list[str]) -> Ran:
    """Trains the recipe."""
    result = train(read_checked(recipe, overrides), RunOptions(overwrite=True))
    assert result.manifest is not None
    facts: dict[str, Any] = dict(result.manifest.run)
    return Ran(
        ms_a_row=1e3 * result.seconds / rows / epochs,
        steps=facts["steps"],
        batches=facts["lean"]["batches"],
        accuracy=result.metrics["validation"]["accuracy"],
    )


def line(name: str, runs: list[Ran]) -> str:
    """One line of the table: time is the median, accuracy the mean over seeds and rounds."""
    last = runs[-1]
    return (
        f"{name:<24}{last.steps:>7}{last.batches['rows_a_step']:>9.1f}{last.batches['tokens_a_step']:>9.0f}"
        f"{last.batches['padding']:>9.3f}{statistics.median(one.ms_a_row for one in runs):>10.2f}"
        f"{statistics.mean(one.accuracy for one in runs):>10.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    folder = options.output or Path(tempfile.mkdtemp(prefix="lora_ft-token-budget-"))
    files = write_domain("books", folder)
    rows = sum(1 for _ in files["train"].open(encoding="utf-8")) - 1
    recipe = folder / "recipe.yaml"
    quoted = {name: json.dumps(str(files[split].resolve())) for name, split in (("train", "train"), ("dev", "dev"))}
    content = RECIPE.format(base=json.dumps(packaged_base()), output=json.dumps(str(folder / "run")), **quoted)
    recipe.write_text(content, encoding="utf-8")
    found: dict[str, list[Ran]] = {"16 rows": [], "a budget of tokens": []}
    for seed in options.seeds.split(","):
        for _ in range(options.rounds):
            usual = [f"training_args.seed={seed}", f"training_args.num_train_epochs={options.epochs}"]
            found["16 rows"].append(ran(recipe, rows=rows, epochs=options.epochs, overrides=usual))
            tokens = round(found["16 rows"][0].batches["tokens_a_step"] / FILLED)
            by_tokens = [
                *usual, f"lean.max_tokens_per_batch={tokens}", f"training_args.per_device_train_batch_size={MOST_ROWS}",
            ]  # fmt: skip
            found["a budget of tokens"].append(ran(recipe, rows=rows, epochs=options.epochs, overrides=by_tokens))
            print(*(line(name, runs[-1:]) for name, runs in found.items()), sep="\n", flush=True)
    print(f"\n{'contender':<24}{'steps':>7}{'rows':>9}{'tokens':>9}{'padding':>9}{'ms a row':>10}{'dev acc':>10}")
    print(*(line(name, runs) for name, runs in found.items()), sep="\n")
    first, second = (statistics.median(one.ms_a_row for one in runs) for runs in found.values())
    print(f"16 rows / a budget of tokens: {first / second:.3f} times the time; the budget was {tokens} tokens")


if __name__ == "__main__":
    main()
