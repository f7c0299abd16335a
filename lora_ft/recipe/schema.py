"""The typed Recipe: what every other room reads; made only by `lora_ft.recipe.read.read_recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Split = Literal["train", "validation", "test"]


ColumnKind = Literal["text", "label", "texts", "labels", "spans", "answers", "messages", "image", "audio", "objects"]
"""What a column holds; `lora_ft.data.kinds` says what each becomes."""

FieldTypes = tuple[Any, ...]
"""Of a key in a section: the types it may have (`int`, `list`), or its values (`"left", "right"`)."""


@dataclass(frozen=True)
class Column:
    """One column that a task reads, under our name.

    Attributes:
        name: The name in `dataset.columns`, on the left: `text`, `text_pair`, `label`.
        kind: What it holds; `label` columns get a label vocabulary.
        required: Whether training needs it.
        help: One line for `lora-ft tasks` and `init`.
        target: Whether it holds what is to be learned: rows to predict do not have it.
    """

    name: str
    kind: ColumnKind
    required: bool
    help: str
    target: bool = False


@dataclass(frozen=True)
class TaskFacts:
    """What the recipe needs to know of a task in order to check a recipe; made by the task itself.

    Attributes:
        name: The Hub's pipeline tag, `text-classification`.
        columns: All columns the task reads.
        column_sets: Problem type -> the columns that rows of it must have, one of which must be complete; empty: the
            required columns.
        metrics: For each problem type the names of its metrics; the first is the default for the best model.
        lower_is_better: Metrics that improve downwards (`loss` is always one).
        processor_fields: The `processor` keys that the task understands, each with its types, or with its values.
        generation_fields: Likewise for `generation_config`; empty: the task generates nothing.
        augmentation_fields: Likewise for `augmentation`.
        loss_types: The values of `loss.loss_type` that the task understands; empty: it has one loss, without `beta`.
        weighs_classes: Whether `loss.class_weight` means something.
        smooths_labels: Whether `training_args.label_smoothing_factor` means something.
        starting_point: For `init`: a base, and a training file.
        auto_classes: Names of transformers' auto classes that build its models; empty: not known.
        least_tokens: The least `processor.max_length` that leaves room for a text.
    """

    name: str
    columns: tuple[Column, ...]
    metrics: Mapping[str, tuple[str, ...]]
    lower_is_better: frozenset[str]
    processor_fields: Mapping[str, FieldTypes]
    column_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    generation_fields: Mapping[str, FieldTypes] = field(default_factory=dict)
    augmentation_fields: Mapping[str, FieldTypes] = field(default_factory=dict)
    loss_types: tuple[str, ...] = ()
    weighs_classes: bool = False
    smooths_labels: bool = False
    starting_point: tuple[str, str] = ("google-bert/bert-base-uncased", "data/train.csv")
    auto_classes: tuple[str, ...] = ()
    least_tokens: int = 1


@dataclass(frozen=True)
class ModelSection:
    """`model`: arguments of `from_pretrained`, and `dropout`, our own word.

    Attributes:
        pretrained_model_name_or_path: A hub id, or a folder (relative to the recipe).
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code from the base's repository may run.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, ...
        dtype: `float32`, `bfloat16`, `float16`, or None: follows the device.
        problem_type: Given only where the data leaves it open (whole numbers as regression targets).
        dropout: Probability for every dropout of the frozen base, or `keep` for the base's own.
    """

    pretrained_model_name_or_path: str
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    dtype: str | None = None
    problem_type: str | None = None
    dropout: float | Literal["keep"] = 0.0


@dataclass(frozen=True)
class DatasetSection:
    """`dataset`: arguments of `datasets.load_dataset`, and our own words.

    Attributes:
        path: A hub id, or a folder written by `save_to_disk` (then absolute); None with `data_files`.
        name: Configuration of a hub dataset.
        revision: Branch, tag or commit of a hub dataset.
        data_files: For each split the files, absolute, globs expanded and sorted.
        split: For each of our splits the split expression of the source (`train[:80%]`); with `path` only.
        columns: Our column name -> the column(s) of the data; several names for `label` mean multi-label 0/1
            columns.
        label_names: All labels in order, or None: taken from the training rows.
        label_delimiter: Splits one text cell into several labels (`a|b`): multi-label.
        validation: Share of the training rows to split off for validation.
        test: Share of the training rows to split off for a test.
        sample_by: What of a .txt file is one row: `line`, `paragraph` or `document` (as in `datasets`).
        media_dir: Folder that the paths of images and sounds start at, absolute; None: the folder of the data file.
        on_bad_row: What happens to rows that cannot be used: `error`, or `skip` and count them.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    data_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    label_delimiter: str | None = None
    validation: float | None = None
    test: float | None = None
    sample_by: Literal["line", "paragraph", "document"] = "line"
    media_dir: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class LossSection:
    """`loss`: what the training loss weighs.

    Attributes:
        class_weight: `balanced` (scikit-learn's formula), a weight for each label, or None.
        loss_type: Which loss of preference-tuning, `sigmoid` (DPO), `ipo`, `orpo`, ...; None: the task's first.
        beta: How far preference-tuning may lead away from the base: little at 0.5, far at 0.05; None: 0.1.
    """

    class_weight: Literal["balanced"] | Mapping[str, float] | None = None
    loss_type: str | None = None
    beta: float | None = None


@dataclass(frozen=True)
class OptimizerSection:
    """`optimizer`: peft's own optimizers; without it `training_args.optim` decides.

    Attributes:
        name: `loraplus` (peft's create_loraplus_optimizer), `lorafa` (create_lorafa_optimizer), or None.
        loraplus_lr_ratio: Learning rate of B over that of A.
        loraplus_lr_embedding: Learning rate of LoRA on embeddings.
    """

    name: Literal["loraplus", "lorafa"] | None = None
    loraplus_lr_ratio: float = 16.0
    loraplus_lr_embedding: float = 1e-6


@dataclass(frozen=True)
class EarlyStoppingSection:
    """`early_stopping`: arguments of transformers' EarlyStoppingCallback.

    Attributes:
        early_stopping_patience: Evaluations without improvement until the run stops; None: never.
        early_stopping_threshold: How much better counts as better.
    """

    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """One experiment, checked and resolved: every default filled in, every path absolute.

    Attributes:
        file: The YAML file it was read from.
        task: Name of the task.
        model: The base.
        peft_config: `peft_type` and the fields of that method's config class.
        dataset: The rows.
        processor: Arguments of the tokenizer (or image or audio processor).
        training_args: Arguments of `TrainingArguments`, our defaults filled in; `output_dir` absolute.
        quantization_config: Arguments of `BitsAndBytesConfig`, or None.
        loss: Weights of the loss.
        optimizer: peft's optimizers.
        early_stopping: When to stop before the last epoch.
        generation_config: Fields of transformers' GenerationConfig, for tasks that generate.
        augmentation: How training rows are varied, in the words of the task.
        checks: Gates and findings that are turned off (`false`), by name.
        offline: Never ask a hub.
    """

    file: Path
    task: str
    model: ModelSection
    peft_config: Mapping[str, Any]
    dataset: DatasetSection
    processor: Mapping[str, Any]
    training_args: Mapping[str, Any]
    quantization_config: Mapping[str, Any] | None = None
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, bool] = field(default_factory=dict)
    offline: bool = False

    @property
    def checks_off(self) -> frozenset[str]:
        """Names of the gates and findings that this recipe turns off."""
        return frozenset(name for name, wanted in self.checks.items() if not wanted)
