"""The rules on labels: their names, how many a row has, and how the loss weighs them."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ft.recipe.draft import Draft, label_columns, problem_type, several_labels
from lora_ft.recipe.faults import Fault, dotted, near_or_known

MULTI = "multi_label_classification"
REGRESSION = "regression"


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
    elif len(set(names)) < (1 if kind == MULTI else 2):
        yield Fault(("dataset", "label_names"), "expected at least 2 labels. Name them all, or leave it out")


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
    if key is not None and kind not in (None, MULTI):
        yield Fault(
            ("model", "problem_type"),
            f"{dotted(key)} gives each row several labels, which is a {MULTI}. Leave problem_type out, or "
            f"change {dotted(key)}",
        )


def problem_type_is_the_tasks(draft: Draft) -> Iterator[Fault]:
    """A problem type that the task does not have."""
    kind = draft.value("model", "problem_type")
    if kind is not None and draft.task is not None and kind not in draft.task.metrics:
        known = ", ".join(draft.task.metrics) or "none"
        yield Fault(("model", "problem_type"), f"the task {draft.task.name} has no such problem type. Known: {known}")


def class_weight_fits_the_problem(draft: Draft) -> Iterator[Fault]:
    """Weights of classes where there are none."""
    if draft.value("loss", "class_weight") is not None and problem_type(draft) == REGRESSION:
        yield Fault(("loss", "class_weight"), "a regression has no classes to weigh. Leave it out")


def class_weight_names_labels(draft: Draft) -> Iterator[Fault]:
    """Weights of labels that do not exist, or that turn the loss around."""
    weights = draft.value("loss", "class_weight")
    if not isinstance(weights, dict):
        return
    names = draft.value("dataset", "label_names")
    for name, weight in weights.items():
        if names is not None and name not in names:
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
    if draft.number("training_args", "label_smoothing_factor") > 0 and kind in (MULTI, REGRESSION):
        yield Fault(
            ("training_args", "label_smoothing_factor"),
            f"smoothing spreads one label over all, and this is a {kind}. Leave it out",
        )
