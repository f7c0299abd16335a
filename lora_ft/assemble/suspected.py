"""Recipe -> rows whose label is probably wrong, by what the frozen base makes of them; nothing is trained on it."""

from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np

from lora_ft.assemble.embed import row_embeddings
from lora_ft.assemble.examination import Examination, Watch, unwatched
from lora_ft.assemble.examined import excerpts_of
from lora_ft.assemble.prepare import Prepared, prepare
from lora_ft.data.doctor.findings import Finding, Severity, by_share, in_order
from lora_ft.data.doctor.label_errors import FOLDS, Suspects, out_of_fold, suspects
from lora_ft.data.labels import SINGLE
from lora_ft.errors import InputError
from lora_ft.models.load import load_base
from lora_ft.models.precision import plan_precision
from lora_ft.recipe.schema import Recipe

DIGITS = 4
LAYERS = 4
"""The last layers of a base know what a text is about, those below more of how it says it; see docs/data.md."""
TRUSTED = 0.75
"""Where the classifier is right in fewer rows than this, its own mistakes outnumber the wrong labels."""


def with_label_errors(examination: Examination, recipe: Recipe, *, watch: Watch = unwatched) -> Examination:
    """Adds the finding `probable-label-errors` to what was found already.

    Args:
        examination: What `examine` found.
        recipe: The same recipe.
        watch: Makes the progress bar.

    Raises:
        InputError: A row has not exactly one label, or the base gives no embedding of a row.
        DataError: The rows cannot be trained on; see `prepare`.
    """
    prepared = prepare(replace(recipe, augmentation={}))  # variants have the label of their row, right or wrong
    if prepared.problem.problem_type != SINGLE:
        raise InputError(
            f"data check: --label-errors: the labels are a {prepared.problem.problem_type}. Expected exactly one label "
            "for each row. Leave it out"
        )
    labels = [label for table in prepared.rows.values() for label in table["label"][:]]
    found = label_suspects(prepared, labels, watch=watch)
    told, starts = [], np.cumsum([0, *map(len, prepared.rows.values())])
    for (split, table), start in zip(prepared.rows.items(), starts.tolist(), strict=False):
        mine = (found.rows >= start) & (found.rows < start + len(table))
        if mine.any():
            told.append(_finding(prepared, split, found, mine=np.flatnonzero(mine), start=start, labels=labels))
    ordered = in_order([*examination.findings, *told])
    old = dict(zip(map(id, examination.findings), examination.excerpts, strict=True))
    new = {id(one): excerpts_of(prepared.rows, prepared.task, one) for one in told}
    return replace(examination, findings=ordered, excerpts=[{**old, **new}[id(one)] for one in ordered])


def label_suspects(prepared: Prepared, labels: list[str], *, watch: Watch = unwatched) -> Suspects:
    """The rows of all splits, one after the other, whose label is probably wrong; labels of few rows are left out.

    Args:
        prepared: What `prepare` returned.
        labels: The label of each of these rows.
        watch: Makes the progress bar.

    Raises:
        InputError: The base gives no embedding of a row, or fewer than two labels have five rows.
    """
    names = [name for name in prepared.problem.labels if labels.count(name) >= FOLDS]
    if len(names) < 2:
        raise InputError(
            f"data check: --label-errors: {len(names)} labels have {FOLDS} rows or more. Expected at least two: the "
            f"classifier is fitted on {FOLDS} shares of the rows. Leave it out, or add rows"
        )
    vectors = _vectors(prepared, watch=watch)
    kept = np.flatnonzero(np.isin(labels, names) & np.isfinite(vectors).all(axis=1))
    numbers = [names.index(labels[row]) for row in kept]
    found = suspects(out_of_fold(vectors[kept], numbers, seed=prepared.problem.seed), numbers)
    order = np.array([prepared.problem.labels.index(name) for name in names])
    return replace(found, rows=kept[found.rows], suggested=order[found.suggested])


def _vectors(prepared: Prepared, *, watch: Watch) -> np.ndarray:
    """Embeddings of the rows of all splits, `(rows, width)`."""
    recipe, task, problem = prepared.recipe, prepared.task, prepared.problem
    arguments = recipe.training_args
    precision = plan_precision(
        device="cpu" if arguments.get("use_cpu") else None, dtype=recipe.model.dtype, bf16=arguments.get("bf16"),
        fp16=arguments.get("fp16"),
    )  # fmt: skip
    base = load_base(
        prepared.base, auto_class=task.model_class(problem.problem_type), head=task.head,
        config=task.model_config(problem), precision=precision, quantization_config=recipe.quantization_config,
        dropout=recipe.model.dropout, attn_implementation=recipe.model.attn_implementation, dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
    )  # fmt: skip
    model = base.model if recipe.quantization_config else base.model.to(precision.device)
    rows = datasets.concatenate_datasets(list(prepared.rows.values()))
    with watch(sum(map(len, prepared.features.values())), "embed") as advance:
        vectors = row_embeddings(
            model, rows, task=task, problem=problem, precision=precision, layers=LAYERS, advance=advance,
        )  # fmt: skip
    if vectors is None:
        raise InputError(
            f"data check: --label-errors: the base gives no embedding of a row of {task.name}. Leave it out"
        )
    return vectors


def _finding(
    prepared: Prepared, split: str, found: Suspects, *, mine: np.ndarray, start: int, labels: list[str]
) -> Finding:
    """The suspects of one split, by position; the surest is told of first."""
    mine = mine[np.argsort(found.rows[mine])]
    rows, of = found.rows[mine] - start, len(prepared.rows[split])
    details = [
        {
            "label": labels[row + start], "suggested": prepared.problem.labels[label],
            "score": round(float(score), DIGITS),
        }
        for row, label, score in zip(rows, found.suggested[mine], found.scores[mine], strict=True)
    ]  # fmt: skip
    surest = max(details, key=lambda one: one["score"])
    where = prepared.origins[split].describe([int(rows[details.index(surest)])])
    told = (
        f"probably have a wrong label (the surest: {where}: {surest['label']!r}, most likely {surest['suggested']!r}, "
        f"score {surest['score']:.2f}; the base's embeddings tell the labels apart in {found.accuracy:.0%} of rows"
        f"{'' if found.accuracy >= TRUSTED else ', too few to trust: most of these labels will be right'})"
    )
    severity: Severity = by_share(len(rows), of) if found.accuracy >= TRUSTED else "note"
    remedy = "Look at these rows first, and mend what is wrong; --json has the label that each most likely has"
    return Finding(
        "probable-label-errors", severity, split, len(rows), of, told, remedy, rows=rows,
        details=details, origin=prepared.origins[split],
    )  # fmt: skip
