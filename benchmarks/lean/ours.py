"""Times one of our recipes as `lora-ft train` runs it, then counts a few of its steps.

    python -m benchmarks.lean.ours RECIPE [--count-after 1] [section.key=value ...]

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contender import peak_mb
from benchmarks.lean.clock import StepClock, StepCounts, resident_mb
from benchmarks.lean.hugging_face import COUNTED
from lora_ft.cli.environment import read_checked
from lora_ft.recipe.schema import Recipe
from lora_ft.train.run import RunOptions, train

NOT_EVALUATED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def measured(recipe: Recipe, *, count_after: int | None, metrics: Sequence[str]) -> None:
    """Trains, and prints one line of JSON.

    Args:
        recipe: The run.
        count_after: Steps that the second, counted run passes over; None: nothing is counted.
        metrics: What of the evaluation is reported beside the time.
    """
    imports_mb = resident_mb()
    clock = StepClock()
    done = train(recipe, RunOptions(overwrite=True, callbacks=(clock,)))
    scores = done.metrics.get("validation", {})
    ran = {} if done.manifest is None else done.manifest.run["lean"]
    known = ran.get("prefix_cache")  # a reason, or what was made before the first step and how long that took
    result: dict[str, Any] = {
        "train_s": done.seconds + (known["seconds"] if isinstance(known, dict) else 0.0),
        **clock.result(),
        "peak_mb": peak_mb(),
        "imports_mb": imports_mb,
        "dev_loss": scores.get("loss"),
        "learned": done.learned,
        "lean": ran,
        **{f"dev_{name}": scores[name] for name in metrics},
    }
    if count_after is not None:
        counts, steps = StepCounts(passed_over=count_after), count_after + COUNTED
        arguments = {**recipe.training_args, **NOT_EVALUATED, "max_steps": steps}
        arguments["output_dir"] = str(Path(recipe.training_args["output_dir"]) / "counted")
        train(replace(recipe, training_args=arguments), RunOptions(overwrite=True, callbacks=(counts,)))
        result |= counts.result()
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--count-after", type=int)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    measured(read_checked(Path(options.recipe), options.overrides), count_after=options.count_after, metrics=())


if __name__ == "__main__":
    main()
