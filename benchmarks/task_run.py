"""One recipe of any task, trained as an adapter, or in full: all weights of the same base, same rows, loss and metrics.

    python -m benchmarks.task_run RECIPE adapter|full [section.key=value ...]

Prints one line of JSON. `full` goes the same way as `train`, with every weight of the base and its new head in the
place of the adapter; set model.dropout=keep with it for the base's own dropouts, which full fine-tuning needs more.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch
import transformers

from benchmarks.contender import peak_mb
from lora_ft.assemble.prepare import prepare
from lora_ft.cli.environment import read_checked
from lora_ft.models.load import load_base
from lora_ft.recipe.schema import Recipe
from lora_ft.train.arguments import training_arguments
from lora_ft.train.measure import splits_to_measure
from lora_ft.train.outcome import Baseline, measure_adapter
from lora_ft.train.run import RunOptions, train
from lora_ft.train.trainer import AdapterTrainer


def adapter(recipe: Recipe) -> dict[str, object]:
    """The recipe as it is."""
    result = train(recipe, RunOptions(overwrite=True))
    return {
        "train_s": result.seconds,
        "saved_mb": (result.folder / "adapter_model.safetensors").stat().st_size / 1e6,
        "validation": result.metrics["validation"],
        "untrained": result.baseline["validation"],
    }


def full(recipe: Recipe) -> dict[str, object]:
    """The same recipe with every weight in training."""
    prepared = prepare(recipe)
    task, problem = prepared.task, prepared.problem
    arguments, precision = training_arguments(prepared)
    transformers.set_seed(int(recipe.training_args["seed"]))
    base = load_base(
        prepared.base, auto_class=task.model_class(problem.problem_type), head=task.head,
        config=task.model_config(problem), precision=precision, quantization_config=None,
        dropout=recipe.model.dropout, attn_implementation=recipe.model.attn_implementation, dtype="float32",
        trust_remote_code=False,
    )  # fmt: skip
    base.model.requires_grad_(True)
    trainer = AdapterTrainer(
        prepared=prepared, precision=precision, splits=splits_to_measure(prepared), class_weight=None,
        new_head=base.new_head, ran={}, model=base.model, args=arguments,
    )  # fmt: skip
    baseline = Baseline.of(trainer)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    _, metrics = measure_adapter(trainer)
    trained = sum(parameter.numel() for parameter in base.model.parameters())
    return {
        "train_s": seconds,
        "saved_mb": 4 * trained / 1e6,
        "validation": metrics["validation"],
        "untrained": baseline.metrics["validation"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("how", choices=["adapter", "full"])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    recipe = read_checked(Path(options.recipe), options.overrides)
    result = adapter(recipe) if options.how == "adapter" else full(recipe)
    print(json.dumps({**result, "threads": torch.get_num_threads(), "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
