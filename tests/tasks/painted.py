"""Painted pictures on disk, recipes on them, and tiny vision bases with an adapter: what the vision tests share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from lora_ft.adapters.attach import attach
from lora_ft.assemble.prepare import base_config
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import plan_precision
from lora_ft.models.resolve import resolve_base
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.image_examples import COLORS, SCENES, SIDE, picture
from lora_ft.tasks.parts.problem import Problem
from tests.bases import make_base
from tests.toy import read

LABELS = ("apple", "pear")
CONVOLUTIONS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-conv"}
ATTENTION = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


class Adapted:
    """A tiny base with a fresh adapter for a vision task."""

    def __init__(self, folder: Path, kind: str, task: str, peft: Mapping[str, Any], **given: Any) -> None:
        self.task = load_task(task)
        base = resolve_base(str(make_base(folder, kind)), revision=None, offline=True)
        processor = load_processor(base, classes=self.task.processor_classes, trust_remote_code=False)
        problem_type = next(iter(self.task.metrics))
        settings = self.task.settings(
            given, base_config=base_config(base), processor=processor, problem_type=problem_type
        )
        self.problem = Problem(problem_type, LABELS, processor, settings)
        self.rows = self.task.example_rows(problem_type)
        transformers.set_seed(0)
        loaded = load_base(
            base, auto_class=self.task.auto_class, head=self.task.head, config=self.task.model_config(self.problem),
            precision=plan_precision(device="cpu", dtype="float32"), quantization_config=None, dropout=0.0,
            attn_implementation=None, dtype=None, trust_remote_code=False,
        )  # fmt: skip
        self.head = loaded.head
        self.model = attach(loaded.model, peft, task_type=None, head=loaded.head)

    def features(self, rows: Mapping[str, Any] | None = None, *, training: bool = False) -> list[dict[str, Any]]:
        """The features of some rows, of the example rows by default."""
        made = self.task.encode(rows or self.rows, self.problem, training=training)
        return [{name: values[row] for name, values in made.items()} for row in range(len(made["length"]))]

    def batch(self, rows: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
        """The same as a batch."""
        return self.task.collator(self.problem)(self.features(rows))

    def loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch."""
        outputs = self.task.forward(self.model, batch, self.problem)
        return self.task.loss(outputs, batch, self.problem, items=self.task.items(batch))

    def without_gradient(self) -> list[str]:
        """The trained tensors that got no gradient."""
        return [name for name, one in self.model.named_parameters() if one.requires_grad and one.grad is None]


def write_class_folders(folder: Path, *, smallest: int = 8) -> Path:
    """`apple/` and `pear/` with pictures of red and green squares of several sizes."""
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(4):
            half = smallest + 3 * number
            shape = (color, (SIDE // 2 - half, SIDE // 2 - half, 2 * half, 2 * half))
            (folder / name / f"{number}.png").write_bytes(picture([shape])["bytes"])
    return folder


def write_coco(folder: Path) -> Path:
    """The example scenes as PNG files and a COCO file, on pictures that are wider than high."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLORS)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    for image, scene in enumerate(SCENES):
        wide = Image.new("RGB", (2 * SIDE, SIDE), "white")
        for name, (left, top, width, height) in scene:
            wide.paste(COLORS[name], (2 * left, top, 2 * (left + width), top + height))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": image,
                    "category_id": names.index(name),
                    "bbox": [2 * left, top, 2 * width, height],
                    "area": 2 * width * height,
                    "iscrowd": 0,
                }
            )
        wide.save(folder / f"{image}.png")
        content["images"].append({"id": image, "file_name": f"{image}.png", "width": 2 * SIDE, "height": SIDE})
    file = folder / "boxes.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def recipe(folder: Path, base: Path, task: str, **sections: Any) -> Recipe:
    """A checked recipe; `sections` are laid over its own."""
    content: dict[str, Any] = {
        "task": task,
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": dict(ATTENTION),
        "dataset": {},
        "training_args": {
            "output_dir": "run", "learning_rate": 1e-2, "num_train_epochs": 4, "per_device_train_batch_size": 4,
            "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "eval_strategy": "no",
        },
    }  # fmt: skip
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    return read(file)
