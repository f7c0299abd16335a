"""Two hundred reviews to learn from: what the settings against overfitting are worth, on the same rows and seeds.

    python -m benchmarks.overfitting [--seeds 0,1,2] [--only plain,rank] [--output FOLDER] [section.key=value ...]

Short reviews of all 16 domains of FDU-MTL, half of them negative. Each contender trains the same number of epochs; the
best epoch by macro F1 of 200 validation rows is measured on 600 test rows. Finished runs are not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reviews import LABELS, write_short_reviews
from benchmarks.seeds import asked, mean_and_spread, measured
from lora_ft.train.run import TrainResult

WORDS = (5, 40)
SIZES = {"train": 200, "validation": 200, "test": 600}
COUNTS = {split: dict.fromkeys(LABELS.values(), size // 2) for split, size in SIZES.items()}

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


def measure(done: TrainResult) -> dict[str, Any]:
    """What a run says of its rows."""
    gap = (done.manifest.run["gap"] if done.manifest else None) or {}
    return {
        "train_s": done.seconds,
        "train": gap["train"]["f1_macro"],
        "validation": done.metrics["validation"]["f1_macro"],
        "test": done.metrics["test"]["f1_macro"],
        "test_loss": done.metrics["test"]["loss"],
        "verdict": gap["verdict"],
        "change": gap["change"],
    }


def main() -> None:
    options = asked("overfitting", CONTENDERS, seeds="0,1,2")
    write_short_reviews(options.folder, COUNTS, words=WORDS)
    rows = []
    for name in options.names:
        results = []
        for seed in options.seeds:
            overrides = [*CONTENDERS.get(name, ()), f"training_args.seed={seed}", *options.overrides]
            output = options.folder / f"{name}-{seed}"
            results.append(measured(output, RECIPE, overrides=overrides, measure=measure))
            now = results[-1]
            print(
                f"{name:<16} seed {seed}  macro F1 train {now['train']:.3f}, test {now['test']:.3f}, test loss "
                f"{now['test_loss']:.3f}   {now['train_s']:.0f} s   {now['verdict']} {now['change']}",
                flush=True,
            )
        cells = [mean_and_spread([one[metric] for one in results]) for metric in ("train", "test", "test_loss")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    print("\n| | macro F1, training rows | macro F1, test | loss, test |\n| --- | ---: | ---: | ---: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
