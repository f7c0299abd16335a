"""The rules on labels: their names, how many a row has, and how the loss weighs them."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ft.recipe.draft import (
    MULTI,
    REGRESSION,
    Draft,
    has_split,
    label_columns,
    problem_type,
    several_labels,
)
from lora_ft.recipe.faults import Fault, dotted, near_or_known

WITH_LABEL_NAMES = ("label", "labels", "spans", "objects")
"""Kinds of columns that hold names of labels."""


def label_options_have_labels(draft: Draft) -> Iterator[Fault]:
    """Label names or a delimiter where no column holds labels."""
    if draft.task is None:
        return
    kinds = {column.kind for column in draft.task.columns}
    if draft.value("dataset", "label_names") is not None and not kinds & set(WITH_LABEL_NAMES):
        yield Fault(("dataset", "label_names"), f"the task {draft.task.name} has no labels. Leave it out")
    if draft.value("dataset", "label_delimiter") is not None and "label" not in kinds:
        yield Fault(
            ("dataset", "label_delimiter"),
            f"it splits the text of a label column, and the task {draft.task.name} has none. Leave it out",
        )


def label_names_are_several_and_different(draft: Draft) -> Iterator[Fault]:
    """Label names that name a label twice, or no choice at all."""
    names = draft.value("dataset", "label_names")
    if names is None:
        return
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Fault(("dataset", "label_names", index), f"the label {name!r} is named twice. Remove one of them")
    kind = problem_type(draft)
    if kind == REGRESSION:
        yield Fault(("dataset", "label_names"), "a regression has no labels. Leave it out")
    elif not names or (len(set(names)) < 2 and kind != MULTI and label_columns(draft)):
        least = "1 label" if kind == MULTI or not label_columns(draft) else "2 labels"
        yield Fault(("dataset", "label_names"), f"expected at least {least}. Name them all, or leave it out")


def several_labels_in_one_way(draft: Draft) -> Iterator[Fault]:
    """A delimiter that splits nothing, or beside columns that already hold one label each."""
    delimiter = draft.value("dataset", "label_delimiter")
    if delimiter == "":
        yield Fault(
            ("dataset", "label_delimiter"),
            "expected at least one character. Leave it out for one label a row",
        )
    for column in label_columns(draft):
        columns = draft.value("dataset", "columns", column.name)
        if columns == ():
            yield Fault(("dataset", "columns", column.name), "expected at least one column")
        elif delimiter and isinstance(columns, tuple):
            yield Fault(
                ("dataset", "label_delimiter"),
                "it splits the text of one label column, and several are given. Keep one of the two",
            )
        names = draft.value("dataset", "label_names")
        if names is not None and isinstance(columns, tuple) and set(names) != set(columns):
            yield Fault(
                ("dataset", "label_names"),
                f"the labels are the label columns: {', '.join(columns)}. Leave it out",
            )


def several_labels_fit_the_problem(draft: Draft) -> Iterator[Fault]:
    """Several labels a row in a problem that has one."""
    key, kind = several_labels(draft), draft.value("model", "problem_type")
    if key is None or draft.task is None:
        return
    if MULTI not in draft.task.metrics:
        yield Fault(key, f"a row of the task {draft.task.name} has one label. Leave it out, or name one column")
    elif kind in draft.task.metrics and kind != MULTI:
        yield Fault(
            ("model", "problem_type"),
            f"{dotted(key)} gives each row several labels, which is a {MULTI}. Leave problem_type out, or "
            f"change {dotted(key)}",
        )


def problem_type_is_the_tasks(draft: Draft) -> Iterator[Fault]:
    """A problem type that the task does not have."""
    kind = draft.value("model", "problem_type")
    if kind is not None and draft.task is not None and kind not in draft.task.metrics:
        yield Fault(
            ("model", "problem_type"),
            f"the task {draft.task.name} has no such problem type.{near_or_known(kind, draft.task.metrics)}",
        )


OF_CLASSES = {
    ("loss", "class_weight"): "classes to weigh",
    ("loss", "focal_gamma"): "classes that a focal loss is about",
    ("loss", "logit_adjustment"): "classes whose logits could be adjusted",
    ("balancing", "strategy"): "classes to balance",
    ("decision", "threshold"): "classes whose threshold could be set here",
}
"""What only classes of whole rows have."""

UNDONE_TWICE = "Each makes up for the unequal classes, both together count the rare ones twice. Keep one of the two"


def class_options_have_classes(draft: Draft) -> Iterator[Fault]:
    """Weights, losses, draws and thresholds of classes where there are none."""
    if draft.task is None:
        return
    for path, what in OF_CLASSES.items():
        if draft.value(*path) is None:
            continue
        if not draft.task.weighs_classes or problem_type(draft) == REGRESSION:
            who = f"the task {draft.task.name}" if not draft.task.weighs_classes else "a regression"
            yield Fault(path, f"{who} has no {what}. Leave it out")


def rare_classes_are_made_up_for_once(draft: Draft) -> Iterator[Fault]:
    """Two corrections of the same imbalance: balanced weights, balanced draws, adjusted logits."""
    on = [
        path
        for path, wanted in (
            (("loss", "class_weight"), draft.value("loss", "class_weight") == "balanced"),
            (("loss", "logit_adjustment"), draft.number("loss", "logit_adjustment") > 0),
            (("balancing", "strategy"), draft.value("balancing", "strategy") is not None),
        )
        if wanted
    ]
    for path in on[1:]:
        yield Fault(path, f"{dotted(on[0])} is written too. {UNDONE_TWICE}")


def balancing_ratio_has_a_strategy(draft: Draft) -> Iterator[Fault]:
    """A ratio that nothing is drawn by."""
    if draft.given("balancing", "ratio") and not draft.given("balancing", "strategy"):
        yield Fault(("balancing", "ratio"), "it has no effect without balancing.strategy. Write strategy: oversample")


def balancing_draws_the_rows(draft: Draft) -> Iterator[Fault]:
    """Rows that are to be drawn by class, and in the order of the file."""
    path = ("training_args", "train_sampling_strategy")
    order = draft.value(*path, default="random")
    if draft.value("balancing", "strategy") is not None and order not in ("random", "group_by_length"):
        yield Fault(path, "balancing draws the rows anew in each epoch. Write group_by_length or random")


def threshold_can_be_used(draft: Draft) -> Iterator[Fault]:
    """A threshold that is to be tuned on no rows, or of labels that do not exist."""
    path, asked = ("decision", "threshold"), draft.value("decision", "threshold")
    names = draft.value("dataset", "label_names")
    if asked == "tuned" and has_split(draft, "validation") is False:
        yield Fault(path, "there is no validation split to tune it on. Give dataset.validation: 0.1, or a number")
    if isinstance(asked, dict):
        if not asked:
            yield Fault(path, "no label has a threshold. Write 'tuned', a number, or a number for each label")
        for name, value in asked.items():
            if not 0 < value < 1:
                yield Fault((*path, name), "expected a number above 0 and below 1")
            if names is not None and label_columns(draft) and name not in names:
                yield Fault((*path, name), f"dataset.label_names has no label {name!r}.{near_or_known(name, names)}")


def loss_type_is_the_tasks(draft: Draft) -> Iterator[Fault]:
    """A loss that the task does not have, or a `beta` where no loss has one."""
    if draft.task is None:
        return
    known, asked = draft.task.loss_types, draft.value("loss", "loss_type")
    for key in ("loss_type", "beta"):
        if not known and draft.value("loss", key) is not None:
            yield Fault(("loss", key), f"the task {draft.task.name} has one loss, without settings. Leave it out")
    if known and asked is not None and asked not in known:
        yield Fault(("loss", "loss_type"), f"there is no such loss.{near_or_known(asked, known)}")


def class_weight_names_labels(draft: Draft) -> Iterator[Fault]:
    """Weights of labels that do not exist, or that turn the loss around."""
    weights = draft.value("loss", "class_weight")
    if not isinstance(weights, dict):
        return
    names = draft.value("dataset", "label_names")
    for name, weight in weights.items():
        if names is not None and label_columns(draft) and name not in names:
            yield Fault(
                ("loss", "class_weight", name),
                f"dataset.label_names has no label {name!r}.{near_or_known(name, names)}",
            )
        if weight < 0:
            yield Fault(("loss", "class_weight", name), "expected a weight of at least 0")
    if not weights or (names is None and all(weight == 0 for weight in weights.values())):
        yield Fault(("loss", "class_weight"), "no class has a weight. Write 'balanced', or a weight for each label")


def label_smoothing_has_one_label(draft: Draft) -> Iterator[Fault]:
    """Smoothing of labels that are no distribution."""
    kind = problem_type(draft)
    path = ("training_args", "label_smoothing_factor")
    if draft.number(*path) <= 0 or draft.task is None:
        return
    if not draft.task.smooths_labels:
        yield Fault(path, f"the task {draft.task.name} has no labels to smooth. Leave it out")
    elif kind in (MULTI, REGRESSION):
        yield Fault(path, f"smoothing spreads one label over all, and this is a {kind}. Leave it out")
