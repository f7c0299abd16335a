"""Preferences of people: DPO on the PandaLM pairs with stories260K; reward accuracy on held-out prompts.

    python -m benchmarks.pandalm [--seed 0] [section.key=value ...]

The prompts, not the rows, are divided: the same instruction was answered by several pairs of models. `likelier` is the
share of pairs whose chosen answer is the likelier one: of the base before training, of the adapter after it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contender import run
from benchmarks.real_data import real_data

HELD_OUT = 0.2
RECIPE = {
    "task": "preference-tuning",
    "offline": True,
    "peft_config": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "processor": {"max_length": 256, "separator": "\n"},
    "loss": {"loss_type": "sigmoid", "beta": 0.1},
}
TRAINING = {"learning_rate": 1e-3, "num_train_epochs": 3, "per_device_train_batch_size": 8, "disable_tqdm": True}


def pairs(folder: Path) -> list[dict[str, Any]]:
    """The pairs with a chosen and a rejected answer that differ."""
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    wanted = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    both = [row for row in wanted if row["chosen"].strip() and row["rejected"].strip()]
    return [row for row in both if row["chosen"] != row["rejected"]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    rows, base = pairs(real_data("pandalm")), real_data("stories260K")
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(options.seed).shuffle(prompts)
    held_out = set(prompts[: round(HELD_OUT * len(prompts))])
    folder = Path(tempfile.mkdtemp(prefix="lora_ft-pandalm-"))
    for name, wanted in (("train", False), ("validation", True)):
        lines = [json.dumps(row) for row in rows if (row["prompt"] in held_out) is wanted]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} pairs")
    content = {
        **RECIPE,
        "model": {"pretrained_model_name_or_path": str(base)},
        "dataset": {"data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}},
        "training_args": {**TRAINING, "output_dir": "run", "seed": options.seed},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(content, indent=2), encoding="utf-8")
    found = run(["benchmarks.task_run", str(recipe), "adapter", *options.overrides]).result
    print(f"\n{'':<18}{'reward accuracy':>18}{'margin':>10}{'likelier':>10}{'loss':>10}")
    for name, scores in (("before training", found["untrained"]), ("DPO, LoRA", found["validation"])):
        values = (scores["reward_margin"], scores["likelier_accuracy"], scores["loss"])
        print(f"{name:<18}{scores['reward_accuracy']:>18.3f}" + "".join(f"{value:>10.3f}" for value in values))
    print(f"trained in {found['train_s']:.0f} s, adapter {found['saved_mb']:.2f} MB")


if __name__ == "__main__":
    main()
