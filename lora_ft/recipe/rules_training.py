"""The rules on training arguments: metric, evaluation, checkpoints and early stopping."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ft.recipe.draft import Draft, greater_is_better, has_split, metric_name, problem_type
from lora_ft.recipe.faults import Fault, near_or_known

ADD_VALIDATION = "Give dataset.data_files.validation, or dataset.validation: 0.1"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
NEEDS_EVALUATION = ("reduce_lr_on_plateau", "greedy")


def _strategy(draft: Draft, name: str) -> str | None:
    """`eval_strategy` or `save_strategy`; None where it was given and is wrong."""
    key = f"{name}_strategy"
    if draft.wrong("training_args", key):
        return None
    return str(draft.value("training_args", key, default="no" if name == "eval" else "steps"))


def sampling_options_need_sampling(draft: Draft) -> Iterator[Fault]:
    """Ways to draw the next token where none is drawn."""
    if draft.value("generation_config", "do_sample") is not False:
        return
    for key in SAMPLING:
        if draft.given("generation_config", key):
            yield Fault(("generation_config", key), "it has no effect with do_sample: false. Leave one of the two out")


def metric_is_computed(draft: Draft) -> Iterator[Fault]:
    """A metric for the best model that the task does not compute."""
    metric = metric_name(draft)
    if metric is None or draft.task is None or metric == "loss":
        return
    kind = problem_type(draft)
    known = draft.task.metrics.get(kind or "") or tuple(
        dict.fromkeys(name for names in draft.task.metrics.values() for name in names)
    )
    name, slash, label = metric.partition("/")
    families = {one.partition("_")[0] for one in known}  # `f1/PER`, `map/cat`: of one label
    if metric in known or (slash and label and name in families):
        return
    of = f"the problem type {kind}" if kind else draft.task.name
    yield Fault(
        ("training_args", "metric_for_best_model"),
        f"{of} has no such metric.{near_or_known(metric, (*known, 'loss'))}",
    )


def direction_fits_the_metric(draft: Draft) -> Iterator[Fault]:
    """A direction that would keep the worst model."""
    given, metric = draft.value("training_args", "greater_is_better"), metric_name(draft)
    if given is None or draft.task is None:
        return
    if metric is None:
        if not draft.given("training_args", "metric_for_best_model"):
            yield Fault(
                ("training_args", "greater_is_better"),
                "it says nothing without metric_for_best_model. Leave it out: it follows the metric",
            )
    elif given != greater_is_better(draft.task, metric):
        better = "higher" if greater_is_better(draft.task, metric) else "lower"
        yield Fault(
            ("training_args", "greater_is_better"),
            f"{metric} is better when {better}. Leave it out: it follows the metric",
        )


def evaluation_has_rows(draft: Draft) -> Iterator[Fault]:
    """Evaluation, the best model or early stopping without rows to evaluate on."""
    if has_split(draft, "validation") is not False:
        return
    if _strategy(draft, "eval") not in ("no", None):
        yield Fault(("training_args", "eval_strategy"), f"there is no validation split to evaluate. {ADD_VALIDATION}")
    for key in ("load_best_model_at_end", "eval_on_start", "do_eval"):
        if draft.value("training_args", key) is True:
            yield Fault(("training_args", key), f"there is no validation split to evaluate. {ADD_VALIDATION}")
    if draft.value("early_stopping", "early_stopping_patience") is not None:
        yield Fault(
            ("early_stopping", "early_stopping_patience"),
            f"there is no validation split to watch. {ADD_VALIDATION}",
        )


def best_model_is_saved_when_evaluated(draft: Draft) -> Iterator[Fault]:
    """The best model of a run that does not evaluate, or does not save what it evaluates."""
    evaluate, save = _strategy(draft, "eval"), _strategy(draft, "save")
    if draft.value("training_args", "load_best_model_at_end") is not True or None in (evaluate, save):
        return
    path = ("training_args", "load_best_model_at_end")
    if evaluate == "no":
        if has_split(draft, "validation") is not False:
            yield Fault(path, "eval_strategy is 'no', so there is no best model. Write eval_strategy: epoch")
    elif save not in (evaluate, "best"):
        yield Fault(
            path,
            f"the best model must be saved when it is evaluated, and eval_strategy is {evaluate!r} but "
            f"save_strategy {save!r}. Give both the same value",
        )


def steps_are_multiples(draft: Draft) -> Iterator[Fault]:
    """Checkpoints that fall between two evaluations."""
    if draft.value("training_args", "load_best_model_at_end") is not True:
        return
    if (_strategy(draft, "eval"), _strategy(draft, "save")) != ("steps", "steps"):
        return
    logging = draft.number("training_args", "logging_steps")
    evaluate = draft.number("training_args", "eval_steps", default=logging)
    save = draft.number("training_args", "save_steps", default=500)
    if min(evaluate, save) <= 0:
        return
    ratio = save / evaluate
    if (evaluate < 1) != (save < 1) or abs(ratio - round(ratio)) > 1e-6 or round(ratio) < 1:
        yield Fault(
            ("training_args", "save_steps"),
            f"load_best_model_at_end needs save_steps to be a multiple of eval_steps ({evaluate:g}). "
            f"Write save_steps: {evaluate:g}",
        )


def early_stopping_has_a_best_model(draft: Draft) -> Iterator[Fault]:
    """Early stopping of a run that does not know its best model."""
    patience = draft.value("early_stopping", "early_stopping_patience")
    if patience is None or has_split(draft, "validation") is False:
        if draft.given("early_stopping", "early_stopping_threshold") and not draft.given(
            "early_stopping", "early_stopping_patience"
        ):
            yield Fault(
                ("early_stopping", "early_stopping_threshold"),
                "it has no effect without early_stopping_patience. Write early_stopping_patience: 2",
            )
        return
    wrong = draft.wrong("training_args", "load_best_model_at_end") or None in (
        _strategy(draft, "eval"),
        _strategy(draft, "save"),
    )
    if draft.value("training_args", "load_best_model_at_end") is not True and not wrong:
        yield Fault(
            ("early_stopping", "early_stopping_patience"),
            "early stopping goes back to the best model. Write training_args.load_best_model_at_end: true",
        )


def scheduler_has_an_evaluation(draft: Draft) -> Iterator[Fault]:
    """A learning rate that follows a metric nobody computes."""
    if draft.value("training_args", "lr_scheduler_type") in NEEDS_EVALUATION and _strategy(draft, "eval") == "no":
        yield Fault(("training_args", "lr_scheduler_type"), "it follows the evaluation. Write eval_strategy: epoch")


def prefetch_has_workers(draft: Draft) -> Iterator[Fault]:
    """Prefetching by workers that do not exist."""
    workers = draft.number("training_args", "dataloader_num_workers")
    for key in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if draft.value("training_args", key) and workers == 0:
            yield Fault(("training_args", key), "it needs dataloader_num_workers above 0. Write both, or leave it out")


def one_name_for_checkpointing(draft: Draft) -> Iterator[Fault]:
    """The old and the new name of one setting with different values."""
    old = draft.value("training_args", "gradient_checkpointing")
    new = draft.value("training_args", "activation_checkpointing")
    if old is not None and new is not None and old != new:
        yield Fault(
            ("training_args", "gradient_checkpointing"),
            "activation_checkpointing is its new name and says the opposite. Keep activation_checkpointing",
        )


def checkpointing_is_not_reentrant(draft: Draft) -> Iterator[Fault]:
    """Reentrant checkpointing runs layers without a graph first, so that they are others than in the backward pass."""
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        given = draft.value("training_args", name)
        if isinstance(given, dict) and given.get("use_reentrant"):
            yield Fault(
                ("training_args", name),
                "with use_reentrant: true adapters get no gradients, or wrong ones, below a frozen embedding. Leave it "
                "out: layers are computed again without it",
            )


def one_measure_of_checkpointing(draft: Draft) -> Iterator[Fault]:
    """A limit that chooses the layers to compute again, beside a setting that says all."""
    names = ("gradient_checkpointing", "activation_checkpointing")
    named = next((name for name in names if draft.value("training_args", name) is True), None)
    if named is not None and draft.value("lean", "activation_limit_gb") is not None:
        told = f"training_args.{named}: true computes all layers again, and a limit as many as it takes"
        yield Fault(("lean", "activation_limit_gb"), f"{told}. Keep one of them")


def token_budget_cuts_the_batches(draft: Draft) -> Iterator[Fault]:
    """A budget of tokens where rows have none, or where something else decides how large batches are."""
    for word, rows in (("max_tokens_per_batch", "train"), ("max_tokens_per_eval_batch", "eval")):
        if draft.value("lean", word) is not None and draft.task is not None and draft.task.lazy:
            yield Fault(
                ("lean", word),
                f"rows of {draft.task.name} are not texts: how many tokens each has is not known before it is read. "
                f"Leave it out: training_args.per_device_{rows}_batch_size says how many rows a batch has",
            )
    if draft.value("lean", "max_tokens_per_batch") is None:
        return
    for key, wrong, remedy in (
        ("dataloader_drop_last", True, "a batch under lean.max_tokens_per_batch is never incomplete. Leave it out"),
        (
            "auto_find_batch_size",
            True,
            "lean.max_tokens_per_batch says how large batches are, and the worst of them is tried before the first "
            "step. Leave one of the two out",
        ),
        (
            "train_sampling_strategy",
            "batch_rebalance",
            "it cuts batches of its own, and so does lean.max_tokens_per_batch. Write group_by_length or random",
        ),
    ):
        if draft.value("training_args", key) == wrong:
            yield Fault(("training_args", key), remedy)
