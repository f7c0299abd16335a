"""One adapter by a recipe of ours, on the same rows as the usual script.

    python -m benchmarks.our_run TRAIN.csv DEV.csv --base FOLDER --output FOLDER [section.key=value ...]

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from benchmarks.contender import peak_mb
from lora_ft.cli.environment import read_checked
from lora_ft.train.run import RunOptions, train

RECIPE = """task: text-classification
offline: true
model: {{pretrained_model_name_or_path: {base}}}
peft_config: {{peft_type: LORA, r: 8, lora_alpha: 16, target_modules: all-linear}}
dataset: {{data_files: {{train: {train}, validation: {dev}}}}}
processor: {{max_length: 256}}
training_args: {{output_dir: {output}, num_train_epochs: 3, per_device_train_batch_size: 16}}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("dev")
    parser.add_argument("--base", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()

    logging.basicConfig(level=logging.WARNING)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    quoted = {
        name: json.dumps(str(Path(value).resolve()))
        for name, value in vars(options).items()
        if name in ("train", "dev")
    }
    base = json.dumps(str(Path(options.base).resolve()) if Path(options.base).is_dir() else options.base)
    file.write_text(RECIPE.format(base=base, output=json.dumps(str(folder.resolve())), **quoted), encoding="utf-8")
    recipe = read_checked(file, options.overrides)
    result = train(recipe, RunOptions(overwrite=True))
    scores = result.metrics["validation"]
    print(
        json.dumps(
            {
                "train_s": result.seconds,
                "dev_accuracy": scores["accuracy"],
                "dev_f1_macro": scores["f1_macro"],
                "learned": result.learned,
                "lean": result.manifest.run["lean"] if result.manifest is not None else {},
                "peak_mb": peak_mb(),
            }
        )
    )


if __name__ == "__main__":
    main()
