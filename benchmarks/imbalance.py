"""Reviews of which one in twenty is negative: what class weights, losses, draws and thresholds make of the rare class.

    python -m benchmarks.imbalance [--seeds 0,1] [--only plain,focal] [--output FOLDER] [section.key=value ...]

Short reviews of all 16 domains of FDU-MTL, each text once, 95 to 5 in every split. All contenders take the same number
of steps on the same base. Each is measured on the test rows twice: as it decides by itself, and with the threshold that
has the best macro F1 on the validation rows. Finished contenders are not run again.
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

import datasets
import numpy as np
import transformers

from benchmarks.reviews import LABELS, ROOT, data_folder
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.metrics.single_label import single_label_scores
from lora_ft.recipe.read import read_recipe
from lora_ft.tasks.base import load_task, task_names
from lora_ft.tasks.parts.thresholds import tuned_thresholds
from lora_ft.train.run import RunOptions, train

WORDS = (5, 50)
SIZES = {"train": 1_500, "validation": 600, "test": 1_800}
RARE, RARE_SHARE = "negative", 0.05
ORDER = ("negative", "positive")

CONTENDERS: Mapping[str, Sequence[str]] = {
    "plain": (),
    "weights": ("loss.class_weight=balanced",),
    "focal": ("loss.focal_gamma=2.0",),
    "adjusted": ("loss.logit_adjustment=1.0",),
    "oversample": ("balancing.strategy=oversample",),
    "undersample": ("balancing.strategy=undersample",),
    "balanced": ("balancing.strategy=balanced",),
}
WHAT = {
    "plain": "nothing",
    "weights": "`loss.class_weight: balanced`",
    "focal": "`loss.focal_gamma: 2.0`",
    "adjusted": "`loss.logit_adjustment: 1.0`",
    "oversample": "`balancing.strategy: oversample`",
    "undersample": "`balancing.strategy: undersample`",
    "balanced": "`balancing.strategy: balanced`",
}
SHOWN = ("f1_macro", "accuracy", "precision", "recall", "f1")

RECIPE = """task: text-classification
offline: true
model: {{pretrained_model_name_or_path: sentence-transformers/all-MiniLM-L6-v2}}
peft_config: {{peft_type: LORA, r: 8, lora_alpha: 16, target_modules: all-linear}}
dataset: {{data_files: {{train: {folder}/train.csv, validation: {folder}/validation.csv}}}}
processor: {{max_length: 96}}
training_args: {{output_dir: {output}, max_steps: 282, eval_strategy: steps, eval_steps: 94, disable_tqdm: true}}
"""


def write_rows(folder: Path) -> dict[str, int]:
    """Writes train.csv, validation.csv and test.csv; says how many rare rows each has."""
    texts: dict[str, set[str]] = {name: set() for name in ORDER}
    for split in ("train", "dev"):
        with gzip.open(data_folder() / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if WORDS[0] <= len(row["text"].split()) <= WORDS[1]:
                    texts[LABELS[row["label"]]].add(row["text"])
    rng = random.Random(0)
    both = texts["negative"] & texts["positive"]  # under both labels, so under none
    left = {name: rng.sample(sorted(found - both), len(found - both)) for name, found in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, size in SIZES.items():
        rare = round(RARE_SHARE * size)
        rows = [
            (left[name].pop(), name) for name, count in ((RARE, rare), ("positive", size - rare)) for _ in range(count)
        ]
        rng.shuffle(rows)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(rows)
        counts[split] = rare
    return counts


def read_rows(file: Path) -> tuple[list[str], list[int]]:
    """Texts and class numbers of a CSV."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["text"] for row in rows], [ORDER.index(row["label"]) for row in rows]


def measure(name: str, folder: Path, *, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains one contender and answers validation and test rows with its saved adapter."""
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
        overrides=[f"training_args.seed={seed}", *CONTENDERS[name], *overrides],
        tasks={one: load_task(one).facts() for one in task_names()},
    )
    done = train(recipe, RunOptions(overwrite=True))
    adapter = open_adapter(done.folder, OpenOptions(offline=True))
    scores = {}
    for split in ("validation", "test"):
        texts, truth = read_rows(folder / f"{split}.csv")
        predictions = adapter.predict(datasets.Dataset.from_dict({"text": texts}), batch_size=64)
        scores[split] = [one["scores"][RARE] for one in predictions], truth
    shutil.rmtree(output / "run")
    held_out = [{"scores": {RARE: score, "positive": 1 - score}} for score in scores["validation"][0]]
    threshold = tuned_thresholds(held_out, scores["validation"][1], labels=ORDER, several=False)[RARE]
    found = {
        "train_s": done.seconds,
        "threshold": threshold,
        "alone": _scores(*scores["test"], threshold=0.5),
        "tuned": _scores(*scores["test"], threshold=threshold),
    }
    result.write_text(json.dumps(found), encoding="utf-8")
    return found


def _scores(scores: Sequence[float], truth: Sequence[int], *, threshold: float) -> dict[str, float]:
    """Metrics of test rows, and precision and recall of the rare class."""
    predicted = [0 if score >= threshold else 1 for score in scores]
    whole = single_label_scores(predicted, truth, label_names=ORDER)
    right = sum(one == other == 0 for one, other in zip(predicted, truth, strict=True))
    return {
        "f1_macro": whole["f1_macro"],
        "accuracy": whole["accuracy"],
        "precision": right / max(predicted.count(0), 1),
        "recall": right / truth.count(0),
        "f1": whole[f"f1/{RARE}"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--output", default=str(ROOT / "runs" / "imbalance"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    folder = Path(options.output).resolve()
    rare = write_rows(folder)
    print(", ".join(f"{split} {size} rows, {rare[split]} {RARE}" for split, size in SIZES.items()), flush=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = []
    for name in options.only.split(","):
        results = []
        for seed in seeds:
            results.append(measure(name, folder, seed=seed, overrides=options.overrides))
            now = results[-1]
            print(
                f"{name:<12} seed {seed}  macro F1 {now['alone']['f1_macro']:.3f}, from {now['threshold']:.2f} on "
                f"{now['tuned']['f1_macro']:.3f}   {now['train_s']:.0f} s",
                flush=True,
            )
        for how in ("alone", "tuned"):
            cells = []
            for metric in SHOWN:
                values = [one[how][metric] for one in results]
                spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.3f}{spread}")
            told = WHAT[name] if how == "alone" else "and `decision.threshold: tuned`"
            rows.append(f"| {told} | {' | '.join(cells)} |")
    print("\n| | macro F1 | accuracy | rare precision | rare recall | rare F1 |\n| --- |" + " ---: |" * len(SHOWN))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
