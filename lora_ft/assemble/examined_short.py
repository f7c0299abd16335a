"""The data doctor in short, before every training: a few lines of what is wrong, in at most two seconds."""

from __future__ import annotations

from lora_ft.assemble.prepare import Prepared
from lora_ft.data.doctor.duplicates import DuplicateCheck
from lora_ft.data.doctor.findings import in_order
from lora_ft.data.doctor.labels import LabelCheck
from lora_ft.data.doctor.stream import Check, each_batch, text_columns
from lora_ft.data.doctor.targets import target_reader
from lora_ft.data.doctor.texts import TextCheck
from lora_ft.data.labels import SINGLE

MOST_ROWS = 20_000
TOLD_ALREADY = ("empty-texts", "exact-leakage", "absent-labels", "one-class", "unknown-labels")
"""What `RowReport` says, or refuses itself."""
QUICK_DUPLICATES = ("exact-duplicates", "conflicting-labels")


def examined_in_short(prepared: Prepared) -> list[str]:
    """What is wrong with the rows of a run, one line each: at most 20,000 rows of a split, nothing that takes long.

    Args:
        prepared: What `prepare` returned; what its report says already is not said again.
    """
    task, rows = prepared.task, prepared.own_rows
    if task.lazy or not text_columns(rows["train"], task.columns):
        return []
    problem_type, recipe = prepared.problem.problem_type, prepared.recipe
    target_of = target_reader(rows["train"], task.columns, problem_type=problem_type, names=prepared.problem.labels)
    drawn_again = ("exact-duplicates",) if recipe.preparation.stopping_strategy == "all_exhausted" else ()
    without = recipe.checks_off.union(TOLD_ALREADY, drawn_again)
    checks: list[Check] = [
        TextCheck(quick=True, without=without),
        *(() if without.issuperset(QUICK_DUPLICATES) else (DuplicateCheck(None, without=tuple(without)),)),
        LabelCheck(
            known=prepared.problem.labels or None, one_each=problem_type == SINGLE,
            weighs=task.weighs_classes and not recipe.makes_up_for_rare_classes, without=tuple(without),
        ),
    ]  # fmt: skip
    for batch in each_batch(rows, task.columns, target_of=target_of, most=MOST_ROWS):
        for check in checks:
            check.add(batch)
    findings = in_order(finding for check in checks for finding in check.findings() if finding.severity != "note")
    lines = []
    for one in findings:
        where = f" ({prepared.origins[one.split].describe(one.rows.tolist())})" if len(one.rows) else ""
        lines.append(f"{one.split}: {one.name}: {one.count} of {one.of} rows {one.told}{where}")
    return [*lines, f"data: lora-ft data check {recipe.file.name} says more"] if lines else []
