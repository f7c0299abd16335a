"""Makes an adapter folder of any task on a tiny base without training; B is random, so that it has an effect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from lora_ft.adapters.attach import attach
from lora_ft.adapters.card import model_card
from lora_ft.adapters.folder import write_adapter
from lora_ft.adapters.manifest import BaseIdentity, Manifest
from lora_ft.adapters.probe import make_probe
from lora_ft.assemble.probe import probe_batch, probe_forward
from lora_ft.models.fingerprint import fingerprint
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import Precision
from lora_ft.models.resolve import resolve_base
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Problem
from tests.bases import make_base

CPU = Precision(device="cpu", compute_dtype=torch.float32, autocast=False)
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def make_adapter(
    folder: Path,
    kind: str,
    task_name: str,
    *,
    problem_type: str | None = None,
    labels: tuple[str, ...] = (),
    stored: str | None = None,
    peft_config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `folder/base` and `folder/adapter`; gives the adapter folder."""
    transformers.logging.set_verbosity_error()
    task = load_task(task_name)
    base_folder = resolve_base(str(make_base(folder / "base", kind, auto_class=stored)), revision=None, offline=True)
    kind_of_problem = problem_type or next(iter(task.metrics))
    processor = load_processor(base_folder, classes=task.processor_classes, trust_remote_code=False)
    base_config = json.loads((folder / "base" / "config.json").read_text())
    full = task.settings(settings or {}, base_config=base_config, processor=processor, problem_type=kind_of_problem)
    problem = Problem(kind_of_problem, labels, processor, full)
    torch.manual_seed(0)
    base = load_base(
        base_folder, auto_class=task.model_class(kind_of_problem), head=task.head, config=task.model_config(problem),
        precision=CPU, quantization_config=None, dropout=0.0, attn_implementation=None, dtype=None,
        trust_remote_code=False,
    )  # fmt: skip
    model = attach(base.model, peft_config or LORA, task_type=task.peft_task_type, head=base.head).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    manifest = Manifest(
        task=task.name, problem_type=kind_of_problem, labels=labels,
        base=BaseIdentity(str(folder / "base"), None, asdict(fingerprint(base_folder, cache_dir=None)), 1, 1),
        head=base.head, new_head=base.new_head, peft_type="LORA", versions={}, seed=0,
        metrics={"validation": {"f1": 0.5}}, learned=True, settings=full, precision="float32", quantization=None,
        probe=make_probe(
            model, probe_batch(task, problem), forward=probe_forward(task, problem), precision="float32",
            quantization=None,
        ),
        created="2026-11-22T08:00:00+00:00",
        run={
            "rows": {"train": 6}, "command": "none", "seconds": 1.0, "quantization_config": None, "dtype": None,
            "attn_implementation": None, "majority": None, "base_answers": False, "generation_config": {}, "loss": {},
        },
    )  # fmt: skip
    write_adapter(
        folder / "adapter", model=model, processor=processor, recipe_yaml=f"task: {task.name}\n", manifest=manifest,
        metrics={"f1": 0.5}, card=model_card(manifest), overwrite=False,
    )  # fmt: skip
    return folder / "adapter"
