"""A causal language model on new text: stories260K and LoRA against full fine-tuning of the same base.

    python -m benchmarks.language_models [--only shakespeare,gsm8k] [--rows 7473] [--rounds 1] [section.key=value ...]

Tiny Shakespeare is plain text in blocks, the first 90 % to train on, the last 10 % to measure (the customary split).
GSM8K are prompts with completions, of which only the completions are learned; a tenth is held out. All contenders
have the same rows, loss and metrics, each in a process of its own, and differ in the learning rate (all weights want a
smaller one than an adapter). A third trains the embeddings beside LoRA, which are this base's output layer too: they
are what LoRA alone leaves as the stories had them. Overrides go to all.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.contender import Measured, run
from benchmarks.real_data import real_data
from benchmarks.wnut17 import print_table

METRICS = ("loss", "perplexity", "token_accuracy")
CONTENDERS = {
    "lora_ft, LoRA": ["adapter", "training_args.learning_rate=5e-3"],
    "LoRA and embeddings": [
        "adapter",
        "training_args.learning_rate=5e-3",
        "peft_config.modules_to_save=[embed_tokens]",
        "peft_config.ensure_weight_tying=true",
    ],
    "full fine-tuning": ["full", "training_args.learning_rate=2e-3"],
}
TRAINING = {
    "num_train_epochs": 3, "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 0.05,
    "disable_tqdm": True,
}  # fmt: skip
PEFT = {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "target_modules": "all-linear"}


def shakespeare(folder: Path, rows: int) -> Mapping[str, Any]:
    """The sections of the recipe for plain text; `rows` is not looked at."""
    del rows
    text = (real_data("tinyshakespeare") / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    (folder / "train.txt").write_text(text[:cut], encoding="utf-8")
    (folder / "dev.txt").write_text(text[cut:], encoding="utf-8")
    files = {"train": str(folder / "train.txt"), "validation": str(folder / "dev.txt")}
    return {"dataset": {"data_files": files, "sample_by": "document"}, "processor": {"max_length": 256}}


def gsm8k(folder: Path, rows: int) -> Mapping[str, Any]:
    """The sections of the recipe for prompts and completions, of the first `rows` rows."""
    with gzip.open(real_data("gsm8k") / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = [line for line, _ in zip(stream, range(rows), strict=False)]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    columns = {"prompt": "question", "completion": "answer"}
    return {
        "dataset": {"data_files": str(folder / "rows.jsonl"), "validation": 0.1, "columns": columns},
        "processor": {"max_length": 512, "separator": "\n"},
    }


DATA: Mapping[str, Callable[[Path, int], Mapping[str, Any]]] = {"shakespeare": shakespeare, "gsm8k": gsm8k}


def write_recipe(folder: Path, sections: Mapping[str, Any]) -> Path:
    """The recipe of all contenders; JSON is YAML."""
    content = {
        "task": "text-generation",
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(real_data("stories260K"))},
        "peft_config": PEFT,
        "training_args": {**TRAINING, "output_dir": str(folder / "run")},
        **sections,
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(DATA))
    parser.add_argument("--rows", type=int, default=7_473)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    for name in options.only.split(","):
        measured: dict[str, list[Measured]] = {contender: [] for contender in CONTENDERS}
        for number in range(options.rounds):
            for contender, (how, *own) in CONTENDERS.items():
                folder = Path(tempfile.mkdtemp(prefix=f"lora_ft-{name}-"))
                recipe = write_recipe(folder, DATA[name](folder, options.rows))
                seed = f"training_args.seed={number}"
                measured[contender].append(
                    run(["benchmarks.task_run", str(recipe), how, seed, *own, *options.overrides])
                )
        print(f"\n{name}: validation")
        print_table(measured, metrics=METRICS, rounds=options.rounds)


if __name__ == "__main__":
    main()
