"""A toy problem that a tiny base learns in seconds: whether a review says good or bad things."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ft.recipe.read import read_recipe
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import load_task, task_names

GOOD = ("good", "great", "nice", "love", "works", "sturdy", "soft", "fast", "perfect", "happy")
BAD = ("bad", "awful", "poor", "hate", "broke", "flimsy", "rough", "slow", "broken", "terrible")
THINGS = ("book", "pan", "shirt", "cable", "story", "phone", "battery", "handle", "size")


def sentence(rng: random.Random, *, positive: bool) -> str:
    """A short review with one opinion word, two at times, and a few words that say nothing."""
    words = [rng.choice(("the", "a", "this", "my")), rng.choice(THINGS), rng.choice(("is", "was"))]
    words += rng.sample(GOOD if positive else BAD, rng.randint(1, 2))
    words += rng.choices(("and", "the", "week", "day", "money", "again", "."), k=rng.randint(0, 9))
    return " ".join(words)


def write_reviews(file: Path, rows: int, *, seed: int, names: Sequence[str] = ("negative", "positive")) -> Path:
    """A CSV with the columns `text` and `label`, half of each label."""
    rng = random.Random(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for index in range(rows):
            writer.writerow([sentence(rng, positive=index % 2 == 1), names[index % 2]])
    return file


def write_recipe(folder: Path, base: Path, **sections: Mapping[str, Any]) -> Path:
    """A whole small experiment: data, recipe, output folder; `sections` are laid over the recipe's own.

    JSON is YAML, so the recipe is written as JSON.
    """
    write_reviews(folder / "data" / "train.csv", 128, seed=1)
    write_reviews(folder / "data" / "dev.csv", 32, seed=2)
    content: dict[str, Any] = {
        "task": "text-classification",
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": "data/train.csv", "validation": "data/dev.csv"}},
        "processor": {"max_length": 32},
        "training_args": {
            "output_dir": "run",
            "learning_rate": 2e-2,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 8,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            content[name] = {**content.get(name, {}), **section}
        else:
            content[name] = section
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file


def read(file: Path, *overrides: str) -> Recipe:
    """The checked recipe of a file."""
    return read_recipe(file, overrides=overrides, tasks={name: load_task(name).facts() for name in task_names()})
