"""What each section of a recipe may hold: our own words here, the upstream classes' words by their source.

The dataclasses of `schema.py` are what the other rooms read; this is what a user may write, which is a little
wider (`data_files` may be one file, a list, or a mapping). A test holds the names of both together.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lora_ft.recipe import upstream
from lora_ft.recipe.accepts import (
    ANYTHING,
    BOOL,
    FLOAT,
    INT,
    NULL,
    STR,
    Accepts,
    Choice,
    DictOf,
    Field,
    ListOf,
    Struct,
    TupleOf,
    any_of,
)
from lora_ft.recipe.annotations import DTYPES
from lora_ft.recipe.check_names import FINDINGS, GATES
from lora_ft.recipe.schema import (
    BalancingSection,
    DatasetSection,
    DecisionSection,
    EarlyStoppingSection,
    FieldTypes,
    LeanSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    PreparationSection,
    Recipe,
    TaskFacts,
)

SPLITS = ("train", "validation", "test")

TOP = ("task", "offline")
REQUIRED_SECTIONS = ("model", "dataset", "training_args")
DEFAULTED_SECTION = "peft_config"
"""Left out it means LoRA with our defaults; what it must not be is null."""

TASK_SECTIONS = ("processor", "generation_config", "augmentation")
"""Sections whose keys are the task's."""

OPTIONAL_SECTIONS = (
    "quantization_config", "preparation", *TASK_SECTIONS, "loss", "balancing", "decision", "optimizer",
    "early_stopping", "lean", "checks",
)  # fmt: skip
SECTIONS = ("model", DEFAULTED_SECTION, "dataset", "training_args", *OPTIONAL_SECTIONS)

OPTIONAL_STR = any_of([STR, NULL])
LABEL = any_of([STR, INT, BOOL])
FILES = any_of([STR, ListOf(STR)])

FIELD_TYPES: Mapping[Any, Accepts] = {
    bool: BOOL,
    int: INT,
    float: FLOAT,
    str: STR,
    type(None): NULL,
    list: ListOf(any_of([FLOAT, STR])),
    dict: DictOf(ANYTHING),
}
"""What each type means where a task names it for one of its keys."""


def attribute_help(cls: Any) -> dict[str, str]:
    """What the `Attributes` of a docstring say of each field, on one line."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(": ")
            found[name] = [rest]
        elif line.strip() and name:
            found[name].append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


def _struct(name: str, cls: Any, types: Mapping[str, Accepts]) -> Struct:
    help_texts = attribute_help(cls)
    defaults = {key: value for key, value in vars(cls).items() if isinstance(value, bool | int | float | str)}
    return Struct(
        name,
        {key: Field(accepts, help_texts.get(key, ""), defaults.get(key)) for key, accepts in types.items()},
    )


def _splits(accepts: Accepts) -> Struct:
    fields = {split: Field(any_of([accepts, NULL]), f"the {split} split") for split in SPLITS}
    return Struct("the splits", fields, plural=True)


MODEL = _struct(
    "model",
    ModelSection,
    {
        "pretrained_model_name_or_path": STR,
        "revision": OPTIONAL_STR,
        "trust_remote_code": BOOL,
        "attn_implementation": OPTIONAL_STR,
        "dtype": any_of([Choice(DTYPES), NULL]),
        "problem_type": OPTIONAL_STR,
        "dropout": any_of([FLOAT, Choice(("keep",))]),
    },
)

DATASET = _struct(
    "dataset",
    DatasetSection,
    {
        "path": OPTIONAL_STR,
        "name": OPTIONAL_STR,
        "revision": OPTIONAL_STR,
        "data_files": any_of([FILES, _splits(FILES)]),
        "split": _splits(STR),
        "columns": DictOf(any_of([FILES, NULL])),
        "label_names": any_of([ListOf(LABEL), NULL]),
        "label_delimiter": OPTIONAL_STR,
        "validation": any_of([FLOAT, NULL]),
        "test": any_of([FLOAT, NULL]),
        "group": OPTIONAL_STR,
        "time": OPTIONAL_STR,
        "sample_by": Choice(("line", "paragraph", "document")),
        "media_dir": OPTIONAL_STR,
        "on_bad_row": Choice(("error", "skip")),
    },
)

REPEATS = any_of([Choice(("exact", "near")), NULL])
LENGTHS = tuple(f"{bound}_{unit}" for unit in ("characters", "words", "tokens") for bound in ("min", "max"))

PREPARATION = _struct(
    "preparation",
    PreparationSection,
    {
        "fix_encoding": BOOL,
        "strip_html": BOOL,
        "normalization": any_of([Choice(("NFC", "NFKC", "NFD", "NFKD")), NULL]),
        "replace_urls": OPTIONAL_STR,
        "replace_emails": OPTIONAL_STR,
        "replace_mentions": OPTIONAL_STR,
        "replace": ListOf(TupleOf((STR, STR))),
        "lowercase": BOOL,
        "stop_words": any_of([Choice(("english",)), ListOf(STR), NULL]),
        "collapse_whitespace": BOOL,
        "deduplicate": REPEATS,
        **{name: any_of([INT, NULL]) for name in LENGTHS},
        "languages": ListOf(STR),
        "language_threshold": FLOAT,
        "decontaminate": REPEATS,
        "mixing_weights": DictOf(FLOAT),
        "stopping_strategy": Choice(("first_exhausted", "all_exhausted")),
        "sample": any_of([FLOAT, NULL]),
    },
)

LOSS = _struct(
    "loss",
    LossSection,
    {
        "class_weight": any_of([Choice(("balanced",)), DictOf(FLOAT), NULL]),
        "focal_gamma": any_of([FLOAT, NULL]),
        "logit_adjustment": any_of([FLOAT, NULL]),
        "loss_type": OPTIONAL_STR,
        "beta": any_of([FLOAT, NULL]),
    },
)

BALANCING = _struct(
    "balancing",
    BalancingSection,
    {"strategy": any_of([Choice(("oversample", "undersample", "balanced")), NULL]), "ratio": FLOAT},
)

DECISION = _struct(
    "decision",
    DecisionSection,
    {"threshold": any_of([FLOAT, Choice(("tuned",)), DictOf(FLOAT), NULL])},
)

OPTIMIZER = _struct(
    "optimizer",
    OptimizerSection,
    {
        "name": any_of([Choice(("loraplus", "lorafa")), NULL]),
        "loraplus_lr_ratio": FLOAT,
        "loraplus_lr_embedding": FLOAT,
    },
)

EARLY_STOPPING = _struct(
    "early_stopping",
    EarlyStoppingSection,
    {"early_stopping_patience": any_of([INT, NULL]), "early_stopping_threshold": FLOAT},
)

LEAN = _struct(
    "lean",
    LeanSection,
    {
        "cast_frozen": BOOL,
        "lora_linear": BOOL,
        "byte_dropout": BOOL,
        "dequantized_gb": FLOAT,
        "first_token": BOOL,
        "rms_norm": BOOL,
        "swiglu": BOOL,
        "activation_limit_gb": any_of([FLOAT, NULL]),
        "label_loss": BOOL,
        "prefix_cache": BOOL,
        "prefix_cache_ram_gb": FLOAT,
        "prefix_cache_disk_gb": FLOAT,
        "max_tokens_per_batch": any_of([INT, NULL]),
        "max_tokens_per_eval_batch": any_of([INT, NULL]),
    },
)

CHECKS = Struct(
    "checks",
    {
        **{name: Field(BOOL, f"whether a run is stopped without: {told}", True) for name, told in GATES.items()},
        **{name: Field(BOOL, "whether the data doctor says it", True) for name in FINDINGS},
    },
)


def columns_of(task: TaskFacts) -> Struct:
    """`dataset.columns` of a task: a list of columns where the task reads labels."""
    return Struct(
        f"dataset.columns of the task {task.name}",
        {
            column.name: Field(any_of([FILES if column.kind == "label" else STR, NULL]), column.help)
            for column in task.columns
        },
    )


def dataset_of(task: TaskFacts) -> Struct:
    """`dataset` with the columns of a task."""
    columns = Field(columns_of(task), DATASET.fields["columns"].help)
    return Struct("dataset", {**DATASET.fields, "columns": columns})


def accepts_of(options: FieldTypes) -> Accepts:
    """What a key of a task may be: of some types (`list`: of numbers or texts), one of some values, or either."""
    return any_of(FIELD_TYPES[one] if isinstance(one, type) else Choice((one,)) for one in options)


def keys_of(task: TaskFacts, section: str) -> Struct:
    """A section of `TASK_SECTIONS` with the keys that a task understands; without any where it has no such section."""
    fields = {
        "processor": task.processor_fields,
        "generation_config": task.generation_fields,
        "augmentation": task.augmentation_fields,
    }[section]
    return Struct(
        f"{section} of the task {task.name}",
        {key: Field(accepts_of(options)) for key, options in fields.items()},
    )


def section_struct(section: str, *, task: TaskFacts | None, peft_type: str) -> Struct | None:
    """What a section may hold.

    Args:
        section: One of `SECTIONS`.
        task: The task, or None while it is unknown: then keys that depend on it are not checked.
        peft_type: The method; a wrong one is reported elsewhere.

    Returns:
        The keys with their types, or None where they are not known.
    """
    match section:
        case "training_args":
            return upstream.training_arguments()
        case "peft_config":
            return upstream.peft_config(peft_type)
        case "quantization_config":
            return upstream.quantization_config()
        case "dataset":
            return dataset_of(task) if task else DATASET
        case _ if section in TASK_SECTIONS:
            return keys_of(task, section) if task else None
    own = {
        "model": MODEL, "preparation": PREPARATION, "loss": LOSS, "balancing": BALANCING, "decision": DECISION,
        "optimizer": OPTIMIZER, "early_stopping": EARLY_STOPPING, "lean": LEAN, "checks": CHECKS,
    }  # fmt: skip
    return own[section]


def section_help() -> dict[str, str]:
    """One line for each section and top-level key."""
    return attribute_help(Recipe)
