"""What a checkpoint costs, beside that of the usual peft + Trainer script: the demo's adapter on MiniLM.

    python -m benchmarks.checkpoints [--rounds 5] [--saves 20]

Each contender trains in a process of its own and saves after every step; the contenders take turns. Ours syncs every
file to the disk, hashes it and renames the folder at the end; the Trainer does none of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import transformers
from peft import LoraConfig, get_peft_model

from benchmarks.contender import peak_mb, run
from benchmarks.real_data import ROOT
from lora_ft.cli.environment import read_checked
from lora_ft.models.resolve import resolve_base
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.run import RunOptions, train

RECIPE = ROOT / "recipes" / "text-classification" / "minilm-shop_reviews-lora.yaml"
CONTENDERS = ("trainer", "ours")


class Timed:
    """Times a trainer's way to save."""

    def __init__(self, save: Any) -> None:
        self.save = save
        self.seconds: list[float] = []

    def __call__(self, trainer: Any, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        self.save(trainer, model, trial)
        self.seconds.append(time.perf_counter() - started)

    def __get__(self, trainer: Any, owner: Any = None) -> Any:
        return lambda model, trial: self(trainer, model, trial)


def ours(output: Path, saves: int) -> Timed:
    """Our run of the demo's recipe."""
    timed = ResumableTrainer._save_checkpoint = Timed(ResumableTrainer._save_checkpoint)  # type: ignore[method-assign]
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": saves}
    words = {**saving, "max_steps": saves, "output_dir": output, "load_best_model_at_end": "false"}
    train(read_checked(RECIPE, [f"training_args.{key}={value}" for key, value in words.items()]), RunOptions())
    return timed


def usual(output: Path, saves: int) -> Timed:
    """The usual script with the same adapter, batch and number of saves."""
    recipe = read_checked(RECIPE, [])
    folder = resolve_base(recipe.model.pretrained_model_name_or_path, revision=None, offline=True).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    peft = recipe.peft_config
    config = LoraConfig(
        task_type="SEQ_CLS", r=peft["r"], lora_alpha=peft["lora_alpha"], target_modules=peft["target_modules"]
    )
    files = [str(file) for file in recipe.dataset.data_files["train"]]
    rows = datasets.load_dataset("csv", data_files={"train": files}, cache_dir=tempfile.mkdtemp())["train"]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[object]]:
        return {**tokenizer(batch["text"], truncation=True, max_length=64), "labels": [0 for _ in batch["text"]]}

    timed = Timed(transformers.Trainer._save_checkpoint)
    transformers.Trainer._save_checkpoint = timed
    transformers.Trainer(
        model=get_peft_model(model, config),
        args=transformers.TrainingArguments(
            output_dir=str(output), max_steps=saves, save_strategy="steps", save_steps=1, save_total_limit=2,
            per_device_train_batch_size=recipe.training_args["per_device_train_batch_size"], use_cpu=True,
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=rows.map(encode, batched=True, remove_columns=rows.column_names),
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    ).train()  # fmt: skip
    return timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", nargs="?", choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--saves", type=int, default=20)
    options = parser.parse_args()
    if options.contender is not None:
        with tempfile.TemporaryDirectory() as folder:
            timed = (ours if options.contender == "ours" else usual)(Path(folder), options.saves)
            newest = max(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
            sizes = {file.name: file.stat().st_size for file in sorted(newest.rglob("*")) if file.is_file()}
        print(json.dumps({"seconds": timed.seconds, "sizes": sizes, "peak_mb": peak_mb()}))
        return
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    sizes: dict[str, dict[str, int]] = {}
    for _ in range(options.rounds):
        for name in CONTENDERS:
            result = run(["benchmarks.checkpoints", name, "--saves", str(options.saves)]).result
            seconds[name] += result["seconds"]
            sizes[name] = result["sizes"]
    for name in CONTENDERS:
        taken = sorted(seconds[name])
        print(
            f"{name:<8} {statistics.median(taken) * 1e3:7.1f} ms (fastest {taken[0] * 1e3:.1f}, slowest "
            f"{taken[-1] * 1e3:.1f}) {sum(sizes[name].values()) / 1e6:6.2f} MB in {len(sizes[name])} files"
        )
        print("         " + ", ".join(f"{file} {size / 1e6:.3f}" for file, size in sizes[name].items()))


if __name__ == "__main__":
    main()
