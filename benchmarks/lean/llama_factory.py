"""Prompts and completions by LLaMA-Factory, as its example of LoRA and supervised fine-tuning has it.

    python -m benchmarks.lean.llama_factory ROWS.jsonl --base FOLDER [--batch-size 4] [--count-after 1]

It is installed by hand, because its pins (accelerate 1.11 at most) are not ours; where it is absent it is passed over.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from llamafactory.train.tuner import run_exp

from benchmarks.contender import peak_mb
from benchmarks.lean.clock import StepClock, StepCounts, resident_mb
from benchmarks.lean.hugging_face import COUNTED

VERSIONS_UNCHECKED = {"DISABLE_VERSION_CHECK": "1"}


def arguments(options: argparse.Namespace, *, max_steps: int) -> dict[str, Any]:
    """examples/train_lora of its repository, with our rank, rate and batch size, and a template that adds nothing."""
    folder = Path(tempfile.mkdtemp())
    shutil.copy(options.rows, folder / "rows.jsonl")
    columns = {"prompt": "prompt", "response": "completion"}
    info = {"rows": {"file_name": "rows.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {
        "model_name_or_path": options.base, "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": 8, "lora_alpha": 16, "lora_target": "all", "dataset_dir": str(folder), "dataset": "rows",
        "template": "empty", "cutoff_len": 512, "preprocessing_num_workers": 1, "output_dir": str(folder / "run"),
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "learning_rate": 2e-4, "num_train_epochs": 1,
        "max_steps": max_steps, "per_device_train_batch_size": options.batch_size, "gradient_accumulation_steps": 1,
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows")
    parser.add_argument("--base", required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--count-after", type=int)
    options = parser.parse_args()
    imports_mb, clock = resident_mb(), StepClock()
    os.environ.update(VERSIONS_UNCHECKED)
    started = time.perf_counter()
    run_exp(arguments(options, max_steps=-1), callbacks=[clock])
    result = {
        "train_s": time.perf_counter() - started,
        **clock.result(),
        "peak_mb": peak_mb(),
        "imports_mb": imports_mb,
    }
    if options.count_after is not None:
        counts = StepCounts(passed_over=options.count_after)
        run_exp(arguments(options, max_steps=options.count_after + COUNTED), callbacks=[counts])
        result |= counts.result()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
