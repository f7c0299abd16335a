"""Prompts and completions by the usual peft + Trainer script, and by TRL's SFTTrainer as its documentation shows it.

    python -m benchmarks.lean.usual_decoder trainer|trl ROWS.jsonl --base FOLDER [--fp32] [--batch-size 4]
        [--count-after 1]

`trl` is its quickstart: base by name, rows of prompt and completion, a LoraConfig, all else SFTConfig's defaults: bf16
autocast, gradient checkpointing, the loss of the labels alone in chunks. `--fp32` takes bf16 off, which a CPU without
it would have to imitate. Rank, rate and batch size are the same for all. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from benchmarks.lean.hugging_face import measured

LEARNING_RATE = 2e-4


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")


def read(options: argparse.Namespace) -> datasets.Dataset:
    return datasets.load_dataset("json", data_files=options.rows, split="train", cache_dir=tempfile.mkdtemp())


def shared_arguments(options: argparse.Namespace, *, max_steps: int) -> dict[str, Any]:
    """What is the same for all contenders."""
    return {
        "output_dir": tempfile.mkdtemp(), "learning_rate": LEARNING_RATE, "num_train_epochs": 1, "max_steps": max_steps,
        "per_device_train_batch_size": options.batch_size, "save_strategy": "no", "logging_steps": 1,
        "use_cpu": not torch.cuda.is_available(), "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def trl_trainer(options: argparse.Namespace, *, max_steps: int) -> transformers.Trainer:
    """SFTTrainer with its defaults."""
    precision = {"bf16": False} if options.fp32 else {}
    return SFTTrainer(
        model=options.base,
        args=SFTConfig(**shared_arguments(options, max_steps=max_steps), **precision),
        train_dataset=read(options),
        peft_config=lora(),
    )


def usual_trainer(options: argparse.Namespace, *, max_steps: int) -> transformers.Trainer:
    """The script that everybody writes."""
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.base)
    model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(options.base), lora())

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        ids = prompt + completion
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + completion}

    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**shared_arguments(options, max_steps=max_steps), bf16=not options.fp32),
        train_dataset=read(options).map(encode, remove_columns=["prompt", "completion"]),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        processing_class=tokenizer,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("script", choices=["trainer", "trl"])
    parser.add_argument("rows")
    parser.add_argument("--base", required=True)
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--count-after", type=int)
    options = parser.parse_args()
    make = trl_trainer if options.script == "trl" else usual_trainer
    measured(lambda max_steps: make(options, max_steps=max_steps), count_after=options.count_after, metric=None)


if __name__ == "__main__":
    main()
