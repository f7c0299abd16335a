"""Blood cells in microscope images (BCCD): the loader over all of them, and a few images learned by heart.

    python -m benchmarks.bccd [--rows 4] [section.key=value ...]

No pretrained detection base is to be had here, so the base is a tiny YOLOS made from its config with random weights,
and stays frozen: the numbers say that the mechanics are right, not how good a real base is. `--rows` images are learned
by heart: measured on the images that were trained on. Overrides go to that run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.real_data import real_data
from benchmarks.speech import loss_before
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.cli.environment import read_checked
from lora_ft.recipe.schema import Recipe
from lora_ft.train.run import RunOptions, train

HEIGHT, WIDTH, PATCH = 96, 128, 16
QUERIES = 40
TRAINING = {
    "learning_rate": 3e-3, "max_steps": 800, "per_device_train_batch_size": 4, "disable_tqdm": True,
    "report_to": "none", "eval_strategy": "no", "save_strategy": "no",
}  # fmt: skip


def write_base(folder: Path) -> Path:
    """A YOLOS of two layers with random weights; also its tokens are random, or all its queries would answer alike."""
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, patch_size=PATCH,
        image_size=[HEIGHT, WIDTH], num_detection_tokens=QUERIES, initializer_range=0.1,
    )  # fmt: skip
    model = transformers.YolosModel(config)
    for name, parameter in model.named_parameters():
        if "embeddings" in name and ("token" in name or "position" in name):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    transformers.YolosImageProcessorPil(size={"height": HEIGHT, "width": WIDTH}).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, *, base: Path, files: Mapping[str, str], overrides: Sequence[str]) -> Recipe:
    """The recipe of a run; JSON is YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "task": "object-detection",
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "dataset": {"data_files": dict(files), "media_dir": str(real_data("bccd") / "images")},
        "training_args": {**TRAINING, "output_dir": str(folder / "run")},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return read_checked(file, overrides)


def write_few(source: Path, folder: Path, *, count: int) -> dict[str, str]:
    """The first images of a COCO file, once for training and once, by the same content, for measuring."""
    content = json.loads(source.read_text(encoding="utf-8"))
    content["images"] = content["images"][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in ids]
    files = {}
    for split in ("train", "validation"):
        file = folder / f"{split}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        files[split] = str(file)
    return files


def print_loader(recipe: Recipe) -> None:
    """Reads all images with their boxes, and makes the pixels of each once."""
    started = time.perf_counter()
    prepared = prepare(recipe)
    read_s = time.perf_counter() - started
    started = time.perf_counter()
    made = [features[index] for features in prepared.features.values() for index in range(len(features))]
    decode_s = time.perf_counter() - started
    for split, rows in prepared.rows.items():
        print(f"{split}: {len(rows)} images, {sum(len(row['bbox']) for row in rows['objects'])} boxes")
    print(
        f"labels {', '.join(prepared.problem.labels)}; read and checked in {read_s:.1f} s, {len(made)} images made "
        f"into pixels in {decode_s:.1f} s",
        flush=True,
    )


def print_heart(recipe: Recipe) -> None:
    """Learns a few images by heart, saves, loads, and compares what the adapter answers then."""
    before = loss_before(recipe)
    result = train(recipe, RunOptions(overwrite=True))
    found, start = result.metrics["validation"], result.baseline["validation"]
    print(f"loss {before:.3f} -> {found['loss']:.3f}, {result.seconds:.0f} s, learned {result.learned}")
    for name in ("map_50", "map", *(name for name in found if name.startswith("map/"))):
        print(f"{name:<16}{start[name]:>8.3f} -> {found[name]:.3f}")
    adapter = open_adapter(result.folder, OpenOptions(offline=True))
    rows = prepare(recipe).rows["validation"]
    references = references_of(rows, task=adapter.task, problem=adapter.problem)
    again = adapter.task.score(adapter.predict(rows, batch_size=3), references, adapter.problem)
    agrees = all(abs(again[name] - found[name]) < 1e-6 for name in again)
    print(f"opened again it scores {'the same' if agrees else 'OTHERWISE'}")
    predictions = adapter.predict(rows.remove_columns("objects"), batch_size=3)
    threshold = adapter.problem.settings["threshold"]
    for prediction, true in zip(predictions, references, strict=True):
        print(f"  predicted {len(prediction['objects'])} boxes from {threshold:.2f} on, there are {len(true['boxes'])}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    data = real_data("bccd")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="lora_ft-bccd-") as name:
        folder = Path(name)
        base = write_base(folder / "base")
        whole = {"train": str(data / "train.json"), "validation": str(data / "val.json")}
        print_loader(write_recipe(folder / "whole", base=base, files=whole, overrides=()))
        few = write_few(data / "train.json", folder, count=options.rows)
        print_heart(write_recipe(folder / "few", base=base, files=few, overrides=options.overrides))


if __name__ == "__main__":
    main()
