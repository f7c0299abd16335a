"""The peft + Trainer script that everybody writes: the base's dropouts stay on, rows come in random order, autocast.

    python -m benchmarks.usual_script TRAIN.csv DEV.csv --base FOLDER [--bf16] [--epochs N] [--max-steps N]

Prints one line of JSON. It uses nothing of lora_ft but the benchmark's own measuring.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import datasets
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

from benchmarks.contender import peak_mb


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("dev")
    parser.add_argument("--base", required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_intermixed_args()

    transformers.set_seed(options.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=2)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"))
    rows = datasets.load_dataset(
        "csv", data_files={"train": options.train, "dev": options.dev}, cache_dir=tempfile.mkdtemp()
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, list[object]]:
        encoded = tokenizer(batch["text"], truncation=True, max_length=256)
        return {**encoded, "labels": [int(label == "positive") for label in batch["label"]]}

    rows = rows.map(encode, batched=True, remove_columns=["text", "label"])
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            learning_rate=options.learning_rate,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            bf16=options.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=options.seed,
            report_to="none",
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    accuracy = trainer.evaluate()["eval_accuracy"]
    steps = trainer.state.global_step
    print(json.dumps({"train_s": seconds, "steps": steps, "dev_accuracy": accuracy, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
