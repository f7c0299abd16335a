"""A small experiment of a language model: prompts with completions for a tiny GPT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.recipe.schema import Recipe
from tests.toy import read


def completions(folder: Path, base: Path, **sections: Mapping[str, Any]) -> Recipe:
    """The checked recipe; `sections` are laid over its own."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ("good", "bad", "nice", "poor and cheap and slow")
    rows = [{"prompt": f"is the pan {word}", "completion": f"the pan is {word} ."} for word in words]
    content: dict[str, Any] = {
        "task": "text-generation", "offline": True, "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": "rows.jsonl"}}, "processor": {"max_length": 64},
        "training_args": {
            "output_dir": "run", "num_train_epochs": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no",
        },
    }  # fmt: skip
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows * 6)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    return read(folder / "recipe.yaml")
