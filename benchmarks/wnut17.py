"""Entities in tweets: MiniLM and LoRA on WNUT-17 against full fine-tuning of the same base; entity F1 on dev.

    python -m benchmarks.wnut17 [--rounds 1] [section.key=value ...]

Both run in one go, each in a process of its own, by the same recipe but for the learning rate (all weights want a
smaller one than an adapter) and the base's own dropouts, which full fine-tuning keeps. Overrides go to both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contender import Measured, run
from benchmarks.real_data import packaged_base, real_data

RECIPE = {
    "task": "token-classification",
    "offline": True,
    "peft_config": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "processor": {"max_length": 128},
}
TRAINING = {"learning_rate": 5e-4, "num_train_epochs": 4, "per_device_train_batch_size": 16, "disable_tqdm": True}
CONTENDERS = {
    "lora_ft, LoRA": ["adapter"],
    "full fine-tuning": ["full", "training_args.learning_rate=1e-4", "model.dropout=keep"],
}
METRICS = ("f1", "precision", "recall", "accuracy")


def write_recipe(folder: Path, *, base: str, data: Path) -> Path:
    """The recipe of both contenders; JSON is YAML."""
    content = {
        **RECIPE,
        "model": {"pretrained_model_name_or_path": base},
        "dataset": {
            "data_files": {"train": str(data / "train.jsonl"), "validation": str(data / "dev.jsonl")},
            "columns": {"tags": "ner_tags"},
        },
        "training_args": {**TRAINING, "output_dir": str(folder / "run")},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file


def print_table(measured: Mapping[str, Sequence[Measured]], *, metrics: Sequence[str], rounds: int) -> None:
    """One line a contender: medians of times, means of metrics over the rounds; below it the untrained model."""
    print(f"\n{rounds} round(s), {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    head = f"{'contender':<24}{'train s':>9}{'CPU s':>9}{'peak MB':>9}{'saved MB':>10}"
    print(head + "".join(f"{name:>13}" for name in metrics))
    for name, runs in measured.items():
        train_s, cpu_s, peak_mb, saved = (
            statistics.median(values)
            for values in (
                [one.result["train_s"] for one in runs],
                [one.cpu_s for one in runs],
                [one.peak_mb for one in runs],
                [one.result["saved_mb"] for one in runs],
            )
        )
        scores = (statistics.mean(one.result["validation"][metric] for one in runs) for metric in metrics)
        line = f"{name:<24}{train_s:>9.0f}{cpu_s:>9.0f}{peak_mb:>9.0f}{saved:>10.2f}"
        print(line + "".join(f"{score:>13.4f}" for score in scores))
    start = next(iter(measured.values()))[0].result["untrained"]
    print(f"{'before training':<61}" + "".join(f"{start[metric]:>13.4f}" for metric in metrics))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    data, base = real_data("wnut17"), packaged_base()
    measured: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name, (how, *own) in CONTENDERS.items():
            folder = Path(tempfile.mkdtemp(prefix="lora_ft-wnut17-"))
            recipe = write_recipe(folder, base=base, data=data)
            seed = f"training_args.seed={number}"
            measured[name].append(run(["benchmarks.task_run", str(recipe), how, seed, *own, *options.overrides]))
    print_table(measured, metrics=METRICS, rounds=options.rounds)


if __name__ == "__main__":
    main()
