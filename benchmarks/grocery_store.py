"""Groceries in photos: MobileNetV2 with LoRA on its convolutions, a frozen-features probe, and full fine-tuning.

    python -m benchmarks.grocery_store [--labels fine coarse] [--rows N] [--pixels 224] [--rounds 1] [key=value ...]

81 fine or 43 coarse classes, 2,640 training photos; accuracy on the 296 validation photos, which choose nothing. All
contenders run in one go, each in a process of its own, on the same rows and pixels. The probe is a logistic regression
on the pooled features of the frozen base. Full fine-tuning goes by the same recipe with a learning rate of its own;
batch norms keep the base's statistics in both, as an adapter must. `--rows` takes that many training photos spread over
all classes. Overrides go to the adapter and to full fine-tuning.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contender import Measured, run
from benchmarks.real_data import real_data
from benchmarks.wnut17 import print_table

RECIPE: Mapping[str, Any] = {
    "task": "image-classification",
    "offline": True,
    "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-conv"},
    "augmentation": {"horizontal_flip": 0.5, "random_resized_crop": [0.4, 1.0], "color_jitter": 0.2},
}
TRAINING = {
    "learning_rate": 2e-3, "num_train_epochs": 10, "per_device_train_batch_size": 32, "disable_tqdm": True,
    "per_device_eval_batch_size": 64, "eval_strategy": "no", "save_strategy": "no",
}  # fmt: skip
CONTENDERS = {
    "frozen features, probe": ["probe"],
    "lora_ft, LoRA": ["adapter"],
    "full fine-tuning": ["full", "training_args.learning_rate=5e-4"],
}
METRICS = ("accuracy", "f1_macro")
RESIZE = 256 / 224
"""How much larger an image is made than what is cut out of it, as the base's own processor does."""


def write_rows(folder: Path, *, labels: str, images: Path, count: int | None) -> dict[str, str]:
    """train.csv and validation.csv with the columns `image` and `label`.

    Args:
        folder: Where they go.
        labels: `fine` or `coarse`.
        images: Where the archive was unpacked.
        count: How many training photos, spread evenly; None: all.
    """
    with (real_data("grocery_store") / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = {}
    for split, name in (("train", "train"), ("val", "validation")):
        chosen = [row for row in rows if row["split"] == split]
        if split == "train" and count is not None and count < len(chosen):
            chosen = [chosen[index * len(chosen) // count] for index in range(count)]
        file = folder / f"{name}.csv"
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "label"])
            writer.writerows((images / row["path"], row[labels]) for row in chosen)
        files[name] = str(file)
    return files


def write_recipe(folder: Path, files: Mapping[str, str], *, pixels: int) -> Path:
    """The recipe of all contenders; JSON is YAML."""
    content = {
        **RECIPE,
        "model": {
            "pretrained_model_name_or_path": str(real_data("mobilenet_v2")),
            "dtype": "float32",  # depthwise convolutions are slower in bf16 on a CPU: 47 against 37 ms a photo
        },
        "dataset": {"data_files": dict(files)},
        "processor": {
            "size": {"shortest_edge": round(pixels * RESIZE)}, "crop_size": {"height": pixels, "width": pixels},
        },
        "training_args": {**TRAINING, "output_dir": str(folder / "run")},
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file


def probe(recipe_file: str) -> dict[str, Any]:
    """A logistic regression on the pooled features of the frozen base."""
    import numpy as np
    import torch
    import transformers
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from lora_ft.assemble.encode import encode_rows, references_of
    from lora_ft.assemble.prepare import prepare
    from lora_ft.cli.environment import read_checked

    recipe = read_checked(Path(recipe_file), ())
    prepared = prepare(recipe)
    task, problem = prepared.task, prepared.problem
    base = transformers.AutoModel.from_pretrained(prepared.base.folder).eval()
    started = time.perf_counter()
    tables, truths = {}, {}
    for split, rows in prepared.rows.items():
        features = encode_rows(rows, task=task, problem=problem)
        loader: Any = torch.utils.data.DataLoader(features, batch_size=64, collate_fn=task.collator(problem))  # type: ignore[arg-type]
        with torch.inference_mode():
            pooled = [base(pixel_values=batch["pixel_values"]).pooler_output.flatten(1) for batch in loader]
        tables[split] = torch.cat(pooled).numpy()
        truths[split] = references_of(rows, task=task, problem=problem)
    found = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1_000))
    found.fit(tables["train"], truths["train"])
    logits = np.full((len(tables["validation"]), len(problem.labels)), -np.inf)
    logits[:, found.classes_] = found.predict_log_proba(tables["validation"])
    predictions = task.decode({"logits": logits}, [{}] * len(logits), problem)
    constant = task.constant_answer(truths["train"], problem)
    assert constant is not None
    return {
        "train_s": time.perf_counter() - started,
        "saved_mb": 4 * (tables["train"].shape[1] + 1) * len(problem.labels) / 1e6,
        "validation": task.score(predictions, truths["validation"], problem),
        "untrained": task.score([constant] * len(predictions), truths["validation"], problem),
    }


def compare(options: argparse.Namespace, *, labels: str, images: Path) -> dict[str, list[Measured]]:
    """Runs the contenders in turn."""
    measured: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name, (how, *own) in CONTENDERS.items():
            folder = Path(tempfile.mkdtemp(prefix="lora_ft-grocery-"))
            files = write_rows(folder, labels=labels, images=images, count=options.rows)
            recipe = str(write_recipe(folder, files, pixels=options.pixels))
            command: Sequence[str] = ["benchmarks.task_run", recipe, how, f"training_args.seed={number}", *own]
            if how == "probe":
                measured[name].append(run(["benchmarks.grocery_store", "--probe", recipe]))
            else:
                measured[name].append(run([*command, *options.overrides]))
            scores = measured[name][-1].result["validation"]
            print(
                f"{labels}, {name}: accuracy {scores['accuracy']:.4f}, top 5 {scores['top5_accuracy']:.4f}", flush=True
            )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", nargs="+", choices=["fine", "coarse"], default=["fine", "coarse"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    if options.probe:
        from benchmarks.contender import peak_mb

        print(json.dumps({**probe(options.probe), "peak_mb": peak_mb()}))
        return
    data = real_data("grocery_store")
    real_data("mobilenet_v2")
    with tempfile.TemporaryDirectory(prefix="lora_ft-grocery-") as name:
        with tarfile.open(data / "images.tar") as archive:
            archive.extractall(name, filter="data")
        for labels in options.labels:
            measured = compare(options, labels=labels, images=Path(name))
            print(f"\n{labels} labels, {options.rows or 'all'} training photos, {options.pixels} pixels, "
                  f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads")  # fmt: skip
            print_table(measured, metrics=METRICS, rounds=options.rounds)


if __name__ == "__main__":
    main()
