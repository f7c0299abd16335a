"""What a recipe leaves out: one table of our defaults, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_ft.recipe.draft import Draft, greater_is_better, has_split, metric_name, problem_type


@dataclass(frozen=True)
class Default:
    """One default that differs from upstream's, or that must not change when upstream's does.

    Attributes:
        section: The section.
        key: The upstream field.
        value: Our default.
        reason: Why, for the documentation.
        when: `always`, `lora` (only for peft_type LORA), `linear` (likewise, and not where images are read, whose
            bases are made of convolutions as often as of linear layers) or `validation` (only with a validation
            split).
    """

    section: str
    key: str
    value: Any
    reason: str
    when: Literal["always", "lora", "linear", "validation"] = "always"


DEFAULTS: tuple[Default, ...] = (
    Default("peft_config", "peft_type", "LORA", "the method that nearly every adapter uses"),
    Default("peft_config", "r", 8, "peft's own default, fixed here", "lora"),
    Default("peft_config", "lora_alpha", 16, "twice r, the usual scale; peft's 8 halves every update", "lora"),
    Default(
        "peft_config",
        "lora_dropout",
        0.0,
        "masks cost time: on a CPU 0.1 is slower than full fine-tuning",
        "lora",
    ),
    Default(
        "peft_config",
        "target_modules",
        "all-linear",
        "works for every base; peft's own guess only for known ones",
        "linear",
    ),
    Default(
        "training_args",
        "learning_rate",
        5e-4,
        "adapters want 10 times upstream's 5e-5; 1e-3 can end at chance",
    ),
    Default("training_args", "lr_scheduler_type", "linear", "upstream's own default, fixed here"),
    Default("training_args", "warmup_steps", 0.1, "below 1 a share of all steps: the first steps decide stability"),
    Default("training_args", "num_train_epochs", 3, "upstream's own default, fixed here"),
    Default("training_args", "per_device_train_batch_size", 16, "twice upstream's 8: fewer, fuller steps"),
    Default("training_args", "per_device_eval_batch_size", 64, "evaluation keeps no activations"),
    Default("training_args", "max_grad_norm", 1.0, "upstream's own default, fixed here"),
    Default("training_args", "weight_decay", 0.01, "a usual value; upstream has none"),
    Default(
        "training_args",
        "train_sampling_strategy",
        "group_by_length",
        "padded over real tokens falls from 2.5 to 1.06",
    ),
    Default("training_args", "report_to", ["tensorboard"], "local files, no account; upstream reports nowhere"),
    Default("training_args", "logging_steps", 10, "upstream's 500 is longer than many runs"),
    Default("training_args", "seed", 0, "a recipe gives the same adapter twice"),
    Default(
        "training_args",
        "save_strategy",
        "epoch",
        "follows eval_strategy; something to go on from after an interruption",
    ),
    Default("training_args", "save_total_limit", 2, "the newest one and the best one"),
    Default("training_args", "eval_strategy", "epoch", "a run without evaluation can fail unseen", "validation"),
    Default("training_args", "load_best_model_at_end", True, "the last epoch is often not the best", "validation"),
)


def fill_defaults(draft: Draft) -> None:
    """Adds our defaults for every key that the user did not write.

    Besides the table: `save_strategy` and `eval_strategy` follow each other, so that one can be given
    alone; the best model is kept only where both allow it; `metric_for_best_model` is the task's first
    metric where the recipe says the problem type (else the run fills it in once it has seen the labels);
    `greater_is_better` follows it.

    Args:
        draft: The recipe; its values are changed.
    """
    written = {
        (section, key)
        for section in ("peft_config", "training_args")
        for key in (draft.document.find((section,))[1] or {} if _is_mapping(draft, section) else {})
    }
    lora = draft.value("peft_config", "peft_type", default="LORA") == "LORA"
    linear = lora and not (draft.task and any(column.kind == "image" for column in draft.task.columns))
    validation = has_split(draft, "validation") is not False
    for default in DEFAULTS:
        wanted = {"always": True, "lora": lora, "linear": linear, "validation": validation}[default.when]
        if wanted and (default.section, default.key) not in written and default.section in draft.values:
            draft.values[default.section][default.key] = default.value
    if draft.given("peft_config", "target_parameters") and ("peft_config", "target_modules") not in written:
        draft.section("peft_config").pop("target_modules", None)
    if "training_args" in draft.values:
        _fill_strategies(draft, written)
        _fill_metric(draft, written)


def _is_mapping(draft: Draft, section: str) -> bool:
    return isinstance(draft.document.find((section,))[1], dict)


def _fill_strategies(draft: Draft, written: set[tuple[str, str]]) -> None:
    arguments = draft.section("training_args")
    given = {key: arguments.get(key) for section, key in written if section == "training_args"}
    for one, other in (("eval", "save"), ("save", "eval")):
        strategy = given.get(f"{other}_strategy")
        if f"{one}_strategy" in arguments and f"{one}_strategy" not in given and strategy in ("steps", "epoch"):
            arguments[f"{one}_strategy"] = strategy
        steps = given.get(f"{other}_steps")
        if steps is not None and f"{one}_steps" not in given and arguments.get(f"{one}_strategy") == "steps":
            arguments[f"{one}_steps"] = steps
    never = "no" in (arguments.get("eval_strategy", "no"), arguments.get("save_strategy"))
    if never and "load_best_model_at_end" not in given:
        arguments.pop("load_best_model_at_end", None)


def _fill_metric(draft: Draft, written: set[tuple[str, str]]) -> None:
    arguments = draft.section("training_args")
    kind = problem_type(draft)
    if draft.task is None:
        return
    names = draft.task.metrics.get(kind or "")
    if arguments.get("load_best_model_at_end") and names and ("training_args", "metric_for_best_model") not in written:
        arguments["metric_for_best_model"] = names[0]
    metric = metric_name(draft)
    if metric is not None and ("training_args", "greater_is_better") not in written:
        arguments["greater_is_better"] = greater_is_better(draft.task, metric)
