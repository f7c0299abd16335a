"""What a setting costs in a step of ours: two recipes in one process, their steps in turn on the same batch.

    python -m benchmarks.lean.step_cost RECIPE --first section.key=value --second section.key=value [--rounds 5]
        [section.key=value ...]

A step is forward, loss and backward of the first batch, without the optimizer, which is the same for both. Prints one
line of JSON: the medians, and the median of the ratios round by round (second over first).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.lean.same_curve import our_trainer
from lora_ft.cli.environment import read_checked


def step_of(recipe: Path, overrides: Sequence[str]) -> tuple[Callable[[], None], int]:
    """One step of a recipe's trainer, and the tokens in it."""
    trainer = our_trainer(read_checked(recipe, overrides), steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    items = trainer.prepared.task.totals(batch)
    trainer.model.train()

    def step() -> None:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=items).backward()
        trainer.model.zero_grad()

    return step, batch["input_ids"].numel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--first", nargs="+", required=True)
    parser.add_argument("--second", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    (first, tokens), (second, _) = (step_of(options.recipe, given) for given in (options.first, options.second))
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(options.rounds + 1):  # the first round warms up
        for step, found in zip((first, second), times, strict=True):
            started = time.perf_counter()
            step()
            if number:
                found.append(time.perf_counter() - started)
    ratios = [two / one for one, two in zip(*times, strict=True)]
    print(
        json.dumps(
            {
                "tokens": tokens,
                "first_s": statistics.median(times[0]),
                "second_s": statistics.median(times[1]),
                "ratio": statistics.median(ratios),
            }
        )
    )


if __name__ == "__main__":
    main()
