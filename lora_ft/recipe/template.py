"""A commented recipe to start from: `lora-ft init TASK`."""

from __future__ import annotations

from lora_ft.recipe.schema import TaskFacts

HEADER = """\
# {task}: one recipe makes one adapter.
# Check it:  lora-ft check {file}
# Train it:  lora-ft train {file}
# Every key is a field of the upstream class of its section; docs/recipe.md says which.
task: {task}

# The frozen base: a hub id, or a folder beside this file.
model:
  pretrained_model_name_or_path: {base}

# The adapter: fields of peft's config class for this peft_type.
peft_config:
  peft_type: LORA
  r: 8
  lora_alpha: 16
  target_modules: all-linear

# The rows. Paths start at the folder of this file; .csv .tsv .json .jsonl .ndjson .parquet work.
dataset:
  data_files:
    train: {data}
  # A share of the training rows finds the best epoch; a file of its own goes under data_files.
  validation: 0.1
  # Our name on the left, the column of the data on the right.
  columns:
{columns}
"""

PROCESSOR = """
# Arguments of the tokenizer.
processor:
  max_length: 256
  truncation: true
"""

TRAINING = """
# Fields of transformers' TrainingArguments.
training_args:
  output_dir: {output}
  learning_rate: 5e-4
  num_train_epochs: 3
  per_device_train_batch_size: 16
  seed: 0
"""

BASE = "google-bert/bert-base-uncased"
DATA = "data/train.csv"


def template(task: TaskFacts) -> str:
    """Writes a recipe for a task.

    Args:
        task: The task.

    Returns:
        YAML with comments; it is valid once `data/train.csv` exists beside it with the columns it names.
    """
    width = max(len(f"{column.name}: {column.name}") for column in task.columns)
    columns = "\n".join(
        f"    {f'{column.name}: {column.name}':<{width}}  # {column.help}" for column in task.columns if column.required
    )
    text = HEADER.format(task=task.name, file="recipe.yaml", base=BASE, data=DATA, columns=columns)
    if {"max_length", "truncation"} <= set(task.processor_fields):
        text += PROCESSOR
    return text + TRAINING.format(output=f"runs/{task.name}")
