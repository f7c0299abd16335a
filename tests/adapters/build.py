"""Builds small trained adapters and their folders for the tests of this room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_ft.adapters.attach import attach
from lora_ft.adapters.card import model_card
from lora_ft.adapters.folder import write_adapter
from lora_ft.adapters.manifest import BaseIdentity, Manifest, checksum
from lora_ft.adapters.probe import make_probe
from lora_ft.adapters.tensors import LABELS_KEY, read_header
from lora_ft.adapters.verify import hash_file

HEADS = {
    "bert": ("pooler", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "roberta": ("classifier",),
    "gpt2": ("score",),
    "llama": ("score",),
}
LABELS = ("bad", "fair", "good")


def load(folder: Path, *, seed: int = 1, **settings: Any) -> Any:
    """A base with a new head of three labels; the same seed gives the same head."""
    torch.manual_seed(seed)
    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(LABELS), pad_token_id=0, **settings
    ).eval()


def batch() -> dict[str, torch.Tensor]:
    """Six rows of twelve tokens, three of them padded."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 60, (6, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[:3, 9:] = 0
    ids[:3, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def train(model: Any, *, steps: int = 5, lr: float = 2e-2) -> list[float]:
    """Trains on one batch; gives the losses."""
    model.train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model(**batch(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.eval()
    return losses


def logits(model: Any) -> torch.Tensor:
    """Logits of `batch`."""
    model.eval()
    with torch.no_grad():
        return model(**batch()).logits


def forward(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the probe compares of a classifier."""
    return model(**inputs).logits


def trained(
    folder: Path, peft_config: Mapping[str, Any] | None = None, *, kind: str = "bert", **settings: Any
) -> PeftModel:
    """An adapter trained for a few steps."""
    config = peft_config or {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}
    model = attach(load(folder, **settings), config, task_type="SEQ_CLS", head=HEADS[kind])
    train(model)
    return model


def manifest_for(model: PeftModel, base: Path, *, quantization: str | None = None, **changes: Any) -> Manifest:
    """A manifest as the train room makes it."""
    facts: dict[str, Any] = {
        "task": "text-classification",
        "problem_type": "single_label_classification",
        "labels": LABELS,
        "base": BaseIdentity(str(base), None, {"weights": "0" * 8}, 24_000, 96_000),
        "head": HEADS["bert"],
        "new_head": True,
        "peft_type": model.peft_config["default"].peft_type.value,
        "versions": {"peft": "0.21.2"},
        "seed": 0,
        "metrics": {"validation": {"f1": 0.5}},
        "learned": True,
        "settings": {"max_length": 64},
        "precision": "float32",
        "quantization": quantization,
        "probe": make_probe(model, batch(), forward=forward, precision="float32", quantization=quantization),
        "created": "2026-11-22T08:00:00+00:00",
        "run": {"rows": {"train": 6}, "command": "lora-ft train shop.yaml", "seconds": 3.0},
    }
    return Manifest(**{**facts, **changes})


def write(target: Path, model: PeftModel, base: Path, *, overwrite: bool = False, **changes: Any) -> Manifest:
    """Writes an adapter folder as the train room does."""
    manifest = manifest_for(model, base, **changes)
    return write_adapter(
        target,
        model=model,
        processor=transformers.AutoTokenizer.from_pretrained(base),
        recipe_yaml="task: text-classification\n",
        manifest=manifest,
        metrics={"f1": 0.5},
        card=model_card(manifest),
        overwrite=overwrite,
    )


def resign(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Makes every checksum of a folder right again, as someone would who tampers on purpose."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    content["files"] = {
        name: vars(hash_file(folder / name)) for name in sorted(content["files"]) if (folder / name).is_file()
    }
    tensors = read_header(folder / "adapter_model.safetensors")[0]
    content["tensors"] = {name: {"shape": list(one.shape), "dtype": one.dtype} for name, one in tensors.items()}
    if change is not None:
        change(content)
    content["checksum"] = checksum(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def edit_tensors(
    folder: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    *,
    labels: tuple[str, ...] = LABELS,
) -> None:
    """Rewrites the adapter file with changed tensors."""
    file = folder / "adapter_model.safetensors"
    state = {name: value.clone() for name, value in load_file(file).items()}
    save_file(change(state), file, metadata={"format": "pt", LABELS_KEY: json.dumps(list(labels))})


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with its checksum."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
