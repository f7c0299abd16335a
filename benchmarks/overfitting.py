"""Two hundred reviews to learn from: what the settings against overfitting are worth, on the same rows and seeds.

    python -m benchmarks.overfitting [--seeds 0,1,2] [--only plain,rank] [--output FOLDER] [section.key=value ...]

Short reviews of all 16 domains of FDU-MTL, half of them negative. Each contender trains the same number of epochs; the
best epoch by macro F1 of 200 validation rows is measured on 600 test rows. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from benchmarks.reviews import LABELS, ROOT, data_folder
from lora_ft.recipe.read import read_recipe
from lora_ft.tasks.base import load_task, task_names
from lora_ft.train.run import RunOptions, train

WORDS = (5, 40)
SIZES = {"train": 200, "validation": 200, "test": 600}

CONTENDERS: Mapping[str, Sequence[str]] = {
    "plain": (),
    "lora_dropout": ("peft_config.lora_dropout=0.1",),
    "label_smoothing": ("training_args.label_smoothing_factor=0.1",),
    "weight_decay": ("training_args.weight_decay=0.1",),
    "rank": ("peft_config={peft_type: LORA, r: 2, lora_alpha: 4, target_modules: all-linear}",),
}

RECIPE = """task: text-classification
offline: true
model: {{pretrained_model_name_or_path: sentence-transformers/all-MiniLM-L6-v2}}
peft_config: {{peft_type: LORA, r: 8, lora_alpha: 16, target_modules: all-linear}}
dataset: {{data_files: {{train: {folder}/train.csv, validation: {folder}/validation.csv, test: {folder}/test.csv}}}}
processor: {{max_length: 64}}
training_args: {{output_dir: {output}, num_train_epochs: 6, disable_tqdm: true}}
"""


def write_rows(folder: Path) -> None:
    """Writes train.csv, validation.csv and test.csv, each text once."""
    texts: dict[str, set[str]] = {name: set() for name in LABELS.values()}
    for split in ("train", "dev"):
        with gzip.open(data_folder() / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if WORDS[0] <= len(row["text"].split()) <= WORDS[1]:
                    texts[LABELS[row["label"]]].add(row["text"])
    rng = random.Random(0)
    left = {name: rng.sample(sorted(found), len(found)) for name, found in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rows = [(left[name].pop(), name) for name in left for _ in range(size // 2)]
        rng.shuffle(rows)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(rows)


def measure(name: str, folder: Path, *, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains one contender."""
    output = folder / f"{name}-{seed}"
    result = output / "result.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
    output.mkdir(parents=True, exist_ok=True)
    file = output / "recipe.yaml"
    file.write_text(RECIPE.format(folder=json.dumps(str(folder))[1:-1], output=output / "run"), encoding="utf-8")
    recipe = read_recipe(
        file,
        overrides=[*CONTENDERS.get(name, ()), f"training_args.seed={seed}", *overrides],
        tasks={one: load_task(one).facts() for one in task_names()},
    )
    done = train(recipe, RunOptions(overwrite=True))
    gap = (done.manifest.run["gap"] if done.manifest else None) or {}
    found = {
        "train_s": done.seconds,
        "train": gap["train"]["f1_macro"],
        "validation": done.metrics["validation"]["f1_macro"],
        "test": done.metrics["test"]["f1_macro"],
        "test_loss": done.metrics["test"]["loss"],
        "verdict": gap["verdict"],
        "change": gap["change"],
    }
    shutil.rmtree(output / "run")
    result.write_text(json.dumps(found), encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--output", default=str(ROOT / "runs" / "overfitting"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    folder = Path(options.output).resolve()
    write_rows(folder)
    rows = []
    for name in options.only.split(","):
        results = []
        for seed in map(int, options.seeds.split(",")):
            results.append(measure(name, folder, seed=seed, overrides=options.overrides))
            now = results[-1]
            print(
                f"{name:<16} seed {seed}  macro F1 train {now['train']:.3f}, test {now['test']:.3f}, test loss "
                f"{now['test_loss']:.3f}   {now['train_s']:.0f} s   {now['verdict']} {now['change']}",
                flush=True,
            )
        cells = []
        for metric in ("train", "test", "test_loss"):
            values = [one[metric] for one in results]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    print("\n| | macro F1, training rows | macro F1, test | loss, test |\n| --- | ---: | ---: | ---: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
