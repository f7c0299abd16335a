"""Answers in a text: MiniLM and LoRA on XQuAD English against the untrained head and full fine-tuning.

    python -m benchmarks.xquad [--rounds 1] [section.key=value ...]

XQuAD has no training rows: its 240 paragraphs are split, every fifth one is held out with all its questions, so that
no context is seen in training. All contenders run in one go by the same recipe but for the learning rate and the
base's own dropouts. One trains the two embeddings of token types beside LoRA: this base was trained on single sentences
last, so it does not know what a second segment is, and LoRA on linear layers cannot tell it. Overrides go to all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.contender import Measured, run
from benchmarks.real_data import packaged_base, real_data
from benchmarks.wnut17 import print_table

RECIPE = {
    "task": "question-answering",
    "offline": True,
    "peft_config": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "processor": {"max_length": 384, "stride": 128},
}
TRAINING = {"learning_rate": 1e-3, "num_train_epochs": 6, "per_device_train_batch_size": 8, "disable_tqdm": True}
CONTENDERS = {
    "lora_ft, LoRA": ["adapter"],
    "LoRA and token types": ["adapter", "peft_config.modules_to_save=[token_type_embeddings]"],
    "full fine-tuning": ["full", "training_args.learning_rate=2e-4", "model.dropout=keep"],
}
METRICS = ("f1", "exact_match")
HELD_OUT = 5


def split_by_paragraph(file: Path, folder: Path) -> dict[str, str]:
    """Writes train.jsonl and validation.jsonl: the questions of every fifth paragraph are held out.

    Args:
        file: One question a line, with `context`, `question` and `answers`.
        folder: Where the two files go.

    Returns:
        Split -> file.
    """
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    paragraphs = {context: number for number, context in enumerate(dict.fromkeys(row["context"] for row in rows))}
    files = {}
    for split, held_out in (("train", False), ("validation", True)):
        own = [row for row in rows if (paragraphs[row["context"]] % HELD_OUT == HELD_OUT - 1) == held_out]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
        files[split] = str(path)
    return files


def write_recipe(folder: Path, *, base: str, files: dict[str, str]) -> Path:
    """The recipe of all contenders; JSON is YAML."""
    content = {
        **RECIPE,
        "model": {"pretrained_model_name_or_path": base},
        "dataset": {"data_files": files},
        "training_args": {**TRAINING, "output_dir": str(folder / "run")},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    data, base = real_data("xquad") / "en.jsonl", packaged_base()
    measured: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name, (how, *own) in CONTENDERS.items():
            folder = Path(tempfile.mkdtemp(prefix="lora_ft-xquad-"))
            recipe = write_recipe(folder, base=base, files=split_by_paragraph(data, folder))
            seed = f"training_args.seed={number}"
            measured[name].append(run(["benchmarks.task_run", str(recipe), how, seed, *own, *options.overrides]))
    print_table(measured, metrics=METRICS, rounds=options.rounds)


if __name__ == "__main__":
    main()
