"""Contenders that differ in a few settings, trained with several seeds: what is asked, what is kept, what is shown."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from benchmarks.real_data import ROOT
from lora_ft.cli.environment import read_checked
from lora_ft.train.run import RunOptions, TrainResult, train


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    names: Sequence[str]
    seeds: Sequence[int]
    folder: Path
    overrides: Sequence[str]


def asked(benchmark: str, names: Iterable[str], *, seeds: str) -> Asked:
    """Reads `[--seeds 0,1] [--only NAME,NAME] [--output FOLDER] [section.key=value ...]`, and makes libraries quiet.

    Args:
        benchmark: Its folder in `runs`, unless another is given.
        names: Of the contenders; all of them unless some are given.
        seeds: The seeds, unless others are given.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--only", default=",".join(names))
    parser.add_argument("--output", default=str(ROOT / "runs" / benchmark))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    return Asked(
        names=options.only.split(","),
        seeds=[int(seed) for seed in options.seeds.split(",")],
        folder=Path(options.output).resolve(),
        overrides=options.overrides,
    )


def measured(
    output: Path, recipe: str, *, overrides: Iterable[str], measure: Callable[[TrainResult], dict[str, Any]]
) -> dict[str, Any]:
    """Trains a recipe and measures it, or reads what was measured before; the run itself is not kept.

    Args:
        output: The folder of this contender and seed; the rows lie beside it.
        recipe: With `{folder}` where the rows are and `{output}` where the run goes.
        overrides: `section.key=value`.
        measure: What is to be kept of a run, as JSON has it.
    """
    result = output / "result.json"
    if result.is_file():
        kept: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return kept
    output.mkdir(parents=True, exist_ok=True)
    file = output / "recipe.yaml"
    folder = json.dumps(str(output.parent))[1:-1]
    file.write_text(recipe.format(folder=folder, output=output / "run"), encoding="utf-8")
    found = measure(train(read_checked(file, overrides), RunOptions(overwrite=True)))
    shutil.rmtree(output / "run")
    result.write_text(json.dumps(found), encoding="utf-8")
    return found


def mean_and_spread(values: Sequence[float]) -> str:
    """One cell of a table; the spread is the standard deviation over the seeds."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
