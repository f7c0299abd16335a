"""Reviews of which one in twenty is negative: what class weights, losses, draws and thresholds make of the rare class.

    python -m benchmarks.imbalance [--seeds 0,1] [--only plain,focal] [--output FOLDER] [section.key=value ...]

Short reviews of all 16 domains of FDU-MTL, each text once, 95 to 5 in every split. All contenders take the same number
of steps on the same base. Each is measured on the test rows twice: as it decides by itself, and with the threshold that
has the best macro F1 on the validation rows. Finished contenders are not run again.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from benchmarks.reviews import write_short_reviews
from benchmarks.seeds import asked, mean_and_spread, measured
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.metrics.single_label import single_label_scores
from lora_ft.tasks.parts.thresholds import tuned_thresholds
from lora_ft.train.run import TrainResult

WORDS = (5, 50)
SIZES = {"train": 1_500, "validation": 600, "test": 1_800}
RARE, RARE_SHARE = "negative", 0.05
ORDER = ("negative", "positive")
RARE_ROWS = {split: round(RARE_SHARE * size) for split, size in SIZES.items()}
COUNTS = {split: {RARE: RARE_ROWS[split], "positive": size - RARE_ROWS[split]} for split, size in SIZES.items()}

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


def read_rows(file: Path) -> tuple[list[str], list[int]]:
    """Texts and class numbers of a CSV."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["text"] for row in rows], [ORDER.index(row["label"]) for row in rows]


def measure(done: TrainResult, folder: Path) -> dict[str, Any]:
    """Answers validation and test rows of a folder with the saved adapter of a run."""
    adapter = open_adapter(done.folder, OpenOptions(offline=True))
    scores = {}
    for split in ("validation", "test"):
        texts, truth = read_rows(folder / f"{split}.csv")
        predictions = adapter.predict(datasets.Dataset.from_dict({"text": texts}), batch_size=64)
        scores[split] = [one["scores"][RARE] for one in predictions], truth
    held_out = [{"scores": {RARE: score, "positive": 1 - score}} for score in scores["validation"][0]]
    threshold = tuned_thresholds(held_out, scores["validation"][1], labels=ORDER, several=False)[RARE]
    return {
        "train_s": done.seconds,
        "threshold": threshold,
        "alone": _scores(*scores["test"], threshold=0.5),
        "tuned": _scores(*scores["test"], threshold=threshold),
    }


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
    options = asked("imbalance", CONTENDERS, seeds="0")
    folder = options.folder
    write_short_reviews(folder, COUNTS, words=WORDS)
    print(", ".join(f"{split} {size} rows, {RARE_ROWS[split]} {RARE}" for split, size in SIZES.items()), flush=True)
    rows = []
    for name in options.names:
        results = []
        for seed in options.seeds:
            overrides = [f"training_args.seed={seed}", *CONTENDERS[name], *options.overrides]
            output = folder / f"{name}-{seed}"
            results.append(measured(output, RECIPE, overrides=overrides, measure=partial(measure, folder=folder)))
            now = results[-1]
            print(
                f"{name:<12} seed {seed}  macro F1 {now['alone']['f1_macro']:.3f}, from {now['threshold']:.2f} on "
                f"{now['tuned']['f1_macro']:.3f}   {now['train_s']:.0f} s",
                flush=True,
            )
        for how in ("alone", "tuned"):
            cells = [mean_and_spread([one[how][metric] for one in results]) for metric in SHOWN]
            told = WHAT[name] if how == "alone" else "and `decision.threshold: tuned`"
            rows.append(f"| {told} | {' | '.join(cells)} |")
    print("\n| | macro F1 | accuracy | rare precision | rare recall | rare F1 |\n| --- |" + " ---: |" * len(SHOWN))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
