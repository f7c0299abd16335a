"""Loads tiny bases for the tests of this folder: one call with the defaults of a three-label classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lora_ft.models.load import Base, load_base
from lora_ft.models.precision import Precision, plan_precision
from lora_ft.models.resolve import BaseFolder

HEAD = ("classifier", "score", "pre_classifier", "pooler")
LABELS = {
    "num_labels": 3,
    "id2label": {0: "bad", 1: "fine", 2: "good"},
    "label2id": {"bad": 0, "fine": 1, "good": 2},
    "problem_type": "single_label_classification",
}
CPU = plan_precision(device="cpu", dtype="float32")
CPU_BF16 = Precision(device="cpu", compute_dtype=torch.bfloat16, autocast=True)


def load(folder: Path, **changes: Any) -> Base:
    arguments: dict[str, Any] = {
        "auto_class": "AutoModelForSequenceClassification",
        "head": HEAD,
        "config": LABELS,
        "precision": CPU,
        "quantization_config": None,
        "dropout": 0.0,
        "attn_implementation": None,
        "dtype": None,
        "trust_remote_code": False,
    }
    return load_base(BaseFolder(str(folder), None, folder), **{**arguments, **changes})


def batch(*, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (4, 12), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 0])}


def adapt(base: Base, **changes: Any) -> Any:
    """Plain LoRA on all linear layers; B is random, so that adapters count."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    settings = {
        "task_type": "SEQ_CLS",
        "target_modules": "all-linear",
        "r": 4,
        "modules_to_save": list(base.head),
        "init_lora_weights": False,
        "exclude_modules": [name + r".*" for name in base.head],
    }
    return get_peft_model(base.model, LoraConfig(**{**settings, **changes}))
