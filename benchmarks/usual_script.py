"""The peft + Trainer script that everybody writes, after peft's own example of sequence classification.

    python -m benchmarks.usual_script TRAIN.csv DEV.csv --base FOLDER [--bf16] [--lora-dropout 0.1] [--lean-settings]
        [--epochs 3] [--evaluate] [--count-after 0]

The base's dropouts stay on, rows come in random order, batches are padded to their longest row. `--lean-settings` is
the same script by somebody who knows: base dropouts off, rows grouped by length. `--evaluate` measures dev after each
epoch and keeps the best, within the time. Prints one line of JSON. It uses nothing of lora_ft but the measuring.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

from benchmarks.lean.hugging_face import measured


def make_trainer(options: argparse.Namespace, *, max_steps: int) -> transformers.Trainer:
    """The script, up to `trainer.train()`."""
    transformers.set_seed(options.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.base)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if options.lean_settings else {}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=2, **off)
    lora = LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=options.lora_dropout, target_modules="all-linear"
    )
    model = get_peft_model(model, lora)
    rows = datasets.load_dataset(
        "csv", data_files={"train": options.train, "dev": options.dev}, cache_dir=tempfile.mkdtemp()
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(batch["text"], truncation=True, max_length=256)
        return {**encoded, "labels": [int(label == "positive") for label in batch["label"]]}

    rows = rows.map(encode, batched=True, remove_columns=["text", "label"])
    each_epoch = options.evaluate and max_steps < 0
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            learning_rate=options.learning_rate,
            num_train_epochs=options.epochs,
            max_steps=max_steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            train_sampling_strategy="group_by_length" if options.lean_settings else "random",
            eval_strategy="epoch" if each_epoch else "no",
            save_strategy="epoch" if each_epoch else "no",
            load_best_model_at_end=each_epoch,
            metric_for_best_model="accuracy",
            logging_steps=10,
            bf16=options.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=options.seed,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("dev")
    parser.add_argument("--base", required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--lora-dropout", type=float, default=0.1)
    parser.add_argument("--lean-settings", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--count-after", type=int)
    options = parser.parse_args()
    measured(
        lambda max_steps: make_trainer(options, max_steps=max_steps), count_after=options.count_after, metric="accuracy"
    )


if __name__ == "__main__":
    main()
