"""Adapters as plain peft makes and saves them, without lora_ft: `get_peft_model`, a nudge, `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

AUTO = {
    "text-classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token-classification": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "text-generation": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "image-classification": ("AutoModelForImageClassification", None),
}


def plain_base(base: Path, task: str, *, labels: int | None, seed: int = 1) -> Any:
    """The base for a task as everybody loads it; the same seed gives the same new head."""
    import torch
    import transformers

    torch.manual_seed(seed)
    transformers.logging.set_verbosity_error()
    given = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    return getattr(transformers, AUTO[task][0]).from_pretrained(base, **given).eval()


def save_plain(
    folder: Path, base: Path, task: str, *, labels: int | None = 3, trained: bool = True, **config: Any
) -> Path:
    """Writes an adapter folder of plain peft whose weights are as if it had been trained.

    Args:
        folder: Where it goes.
        base: A tiny base.
        task: One of `AUTO`.
        labels: Labels of the new head, or None.
        trained: Whether anything is moved away from its start.
        config: Fields of LoraConfig, or of the config class that `method` names.
    """
    import peft
    import torch

    method = config.pop("method", "LoraConfig")
    fields = {"task_type": AUTO[task][1], "target_modules": ["query", "value"], **config}
    if method == "LoraConfig":
        fields = {"r": 4, "lora_alpha": 8, **fields}
    model = peft.get_peft_model(plain_base(base, task, labels=labels), getattr(peft, method)(**fields))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (one for one in model.parameters() if one.requires_grad and trained):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def load_plain(folder: Path, base: Path, task: str, *, labels: int | None = 3) -> Any:
    """The adapter on its base by plain peft; the seed of the head is another one than in `save_plain`."""
    import peft

    return peft.PeftModel.from_pretrained(plain_base(base, task, labels=labels, seed=9), folder).eval()


def edit_config(folder: Path, change: Mapping[str, Any], *, drop: tuple[str, ...] = ()) -> None:
    """Changes fields of adapter_config.json."""
    file = folder / "adapter_config.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), **change}
    file.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes adapter_model.safetensors."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in change(dict(load_file(file))).items()}
    save_file(tensors, file, metadata={"format": "pt"})
