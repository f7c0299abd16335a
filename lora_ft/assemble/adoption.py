"""What it takes to adopt an adapter of plain peft: every question that JSON and headers can answer, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.adapters.foreign import ForeignAdapter, read_foreign
from lora_ft.adapters.foreign_base import fit_faults, head_faults, head_rows, named_labels
from lora_ft.adapters.verify import CONFIG
from lora_ft.errors import AdapterRefused, InputError
from lora_ft.models.resolve import BaseFolder, resolve_base
from lora_ft.models.weights import stored_dtype, stored_tensors
from lora_ft.recipe.bases import base_config
from lora_ft.recipe.draft import Draft
from lora_ft.recipe.faults import Document, Fault
from lora_ft.recipe.overrides import lay_over
from lora_ft.recipe.sections import check_sections
from lora_ft.tasks.base import Task, load_task

SETTABLE = ("processor", "generation_config", "dataset")
LABELLED = ("label", "labels", "spans", "objects")
"""Kinds of columns whose values are labels."""

REGRESSION = "regression"
COMMIT_LENGTH = 40


@dataclass(frozen=True)
class Wishes:
    """What the user says of an adapter that says little of itself.

    Attributes:
        base: Where the base is: a hub id, or a folder.
        task: Name of the task.
        labels: All labels in the order of the head's rows, or None: they are found, or called LABEL_0, LABEL_1, ...
        problem_type: One of the task's, or None: found by head and base.
        revision: Commit of a hub id, or None: as the adapter says.
        sets: `processor.max_length=256`, `dataset.columns.text=review`, ...
        dtype: Type of the base's weights, or None: float32 where they are stored so, else what the device computes in.
        offline: Never ask a hub.
        untrained: Whether an adapter without effect is adopted too.
    """

    base: str
    task: str
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None
    revision: str | None = None
    sets: tuple[str, ...] = ()
    dtype: str | None = None
    offline: bool = False
    untrained: bool = False


@dataclass(frozen=True)
class Adoption:
    """An adapter of plain peft with all that can be known of it before torch is imported.

    Attributes:
        adapter: The adapter as it was saved.
        base: The base's folder.
        base_config: Its config.json.
        task: The task.
        problem_type: One of the task's.
        labels: All labels in order; empty where the task has none.
        processor: The section `processor` as given.
        generation: The section `generation_config` as given.
        dataset: The section `dataset` as given: how rows are read.
        dtype: Type of the base's weights, or None: follows the device.
        untrained: Whether an adapter without effect is adopted too.
        notes: What a user should know.
    """

    adapter: ForeignAdapter
    base: BaseFolder
    base_config: Mapping[str, Any]
    task: Task
    problem_type: str
    labels: tuple[str, ...]
    processor: Mapping[str, Any]
    generation: Mapping[str, Any]
    dataset: Mapping[str, Any]
    dtype: str | None
    untrained: bool
    notes: tuple[str, ...]


def plan_adoption(folder: Path, wishes: Wishes) -> Adoption:
    """Checks an adapter of plain peft against its base, and finds out what it does not say.

    Args:
        folder: The adapter folder; only read.
        wishes: What the user says.

    Returns:
        What the adoption needs.

    Raises:
        AdapterError: There is no adapter of plain peft.
        AdapterRefused: It cannot be adopted; with all reasons.
        InputError: There is no such task, or a wish that it does not know.
        ModelError: The base cannot be found.
    """
    task = load_task(wishes.task)
    _refuse_problem_type(wishes, task)
    sections = _sections(wishes.sets, task)
    adapter, faults = read_foreign(folder, task_type=task.peft_task_type, head=task.head, untrained=wishes.untrained)
    base, wrong, notes = _find_base(wishes, {} if adapter is None else adapter.config)
    faults += wrong
    stored = stored_tensors(base.folder)
    shapes = {tensor.name: tensor.shape for tensor in stored}
    config = base_config(str(base.folder), revision=None)
    problem_type, labels = wishes.problem_type, tuple(wishes.labels or ())
    if adapter is not None:
        faults += fit_faults(adapter, shapes, base=base.name)
        faults += head_faults(adapter, shapes, head=task.head, base=base.name)
        rows = head_rows(adapter, shapes, head=task.head) if _labelled(task) else None
        problem_type, said = _problem_type(wishes, task, rows=rows, configs=(adapter.own_config, config))
        notes += said
        labels, wrong, said = _labels(wishes, task, problem_type, rows=rows, adapter=adapter, config=config)
        faults += wrong
        notes += said
    if faults or adapter is None or problem_type is None:
        raise refusal(folder, faults)
    return Adoption(
        adapter=adapter, base=base, base_config=config, task=task, problem_type=problem_type, labels=labels,
        processor=sections["processor"], generation=sections["generation_config"], dataset=sections["dataset"],
        dtype=wishes.dtype or ("float32" if stored_dtype(stored) == "F32" else None), untrained=wishes.untrained,
        notes=(*adapter.notes, *notes),
    )  # fmt: skip


def refusal(folder: Path, faults: Sequence[str]) -> AdapterRefused:
    """The error with all faults, one a line.

    Args:
        folder: The adapter folder.
        faults: What is wrong.
    """
    count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
    lines = "".join(f"\n  {fault}." for fault in faults)
    return AdapterRefused(f"{folder}: this adapter cannot be adopted, {count}:{lines}")


def _refuse_problem_type(wishes: Wishes, task: Task) -> None:
    """Refuses a problem type that the task does not have."""
    if wishes.problem_type is not None and wishes.problem_type not in task.metrics:
        raise InputError(
            f"--problem-type {wishes.problem_type}: {task.name} has no such type. Expected one of: "
            f"{', '.join(task.metrics)}"
        )


def _sections(sets: Sequence[str], task: Task) -> dict[str, dict[str, Any]]:
    """The sections that `--set` makes, checked as those of a recipe.

    Raises:
        RecipeError: A key or value that the section does not take.
    """
    document = lay_over(Document(name="--set", value={"task": task.name}, places={}), sets)
    draft = Draft(document=document, folder=Path())
    faults = [*document.faults]
    faults += [fault for fault in check_sections(draft, {task.name: task.facts()}) if fault.path[0] in SETTABLE]
    faults += [
        Fault((key,), f"adopt sets only {', '.join(SETTABLE)}; all else is in the adapter already. Leave it out")
        for key in document.value
        if key not in ("task", *SETTABLE)
    ]
    readable = ("columns", "label_delimiter", "sample_by", "media_dir")
    faults += [
        Fault(("dataset", key), f"of the dataset, adopt sets only {', '.join(readable)}. Leave it out")
        for key in draft.section("dataset")
        if key not in readable
    ]
    if faults := [one for one in faults if not (one.path == ("dataset",) and "dataset" not in document.value)]:
        raise document.error(faults)
    return {name: draft.section(name) for name in SETTABLE}


def _labelled(task: Task) -> bool:
    """Whether a task names its answers by labels."""
    return any(column.kind in LABELLED for column in task.columns)


def _find_base(wishes: Wishes, config: Mapping[str, Any]) -> tuple[BaseFolder, list[str], list[str]]:
    """The base that the user names, at the revision that the adapter names; faults, and what is to be said of it."""
    recorded, revision = config.get("base_model_name_or_path"), config.get("revision")
    folder = Path(wishes.base).expanduser().is_dir()
    same = isinstance(recorded, str) and _same_name(recorded, wishes.base)
    faults, notes = [], []
    asked = wishes.revision
    if asked is None and same and not folder and isinstance(revision, str):
        asked = revision
    name = str(Path(wishes.base).expanduser().absolute()) if folder else wishes.base
    base = resolve_base(name, revision=asked, offline=wishes.offline)
    if not recorded:
        notes.append("the adapter does not say which base it was trained on: only names and sizes could be checked")
    elif not same:
        notes.append(
            f"the adapter says that it was trained on {recorded!r}, and --base is {wishes.base!r}: names and sizes "
            "fit, which is no proof that it is the same base; both names are recorded"
        )
    if isinstance(revision, str) and base.revision is None:
        notes.append(f"the adapter names revision {revision} of its base; {wishes.base} has no revision to compare")
    elif isinstance(revision, str) and same and len(revision) == COMMIT_LENGTH and base.revision != revision:
        faults.append(
            f"{CONFIG}: revision = {revision}: the adapter was trained on it, and --base is {base.revision}. Leave "
            "--revision out, or give that one"
        )
    return base, faults, notes


def _same_name(recorded: str, given: str) -> bool:
    """Whether two names mean one base: the same id, or the same folder."""
    if recorded.rstrip("/") == given.rstrip("/"):
        return True
    one, other = Path(recorded).expanduser(), Path(given).expanduser()
    return one.is_dir() and other.is_dir() and one.resolve() == other.resolve()


def _problem_type(
    wishes: Wishes, task: Task, *, rows: int | None, configs: Sequence[Mapping[str, Any]]
) -> tuple[str, list[str]]:
    """What kind of problem it is, and what is to be said of it."""
    if wishes.problem_type is not None:
        return wishes.problem_type, []
    named = next((one["problem_type"] for one in configs if one.get("problem_type") in task.metrics), None)
    if named is not None:
        return str(named), []
    if rows == 1 and REGRESSION in task.metrics:
        return REGRESSION, []
    text_alone = {"text"} if task.column_sets else set()
    found = task.problem_type_of(text_alone, base_config=configs[-1])
    if len(task.metrics) == 1:
        return found, []
    others = ", ".join(one for one in task.metrics if one != found)
    return found, [f"taken as {found}, which the adapter does not say; --problem-type knows also: {others}"]


def _labels(
    wishes: Wishes,
    task: Task,
    problem_type: str,
    *,
    rows: int | None,
    adapter: ForeignAdapter,
    config: Mapping[str, Any],
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The labels in the order of the head's rows, faults, and what is to be said of them."""
    if not _labelled(task) or problem_type == REGRESSION:
        what = f"{task.name} ({problem_type}) has no labels"
        faults = [f"--labels: {what}. Leave it out"] if wishes.labels is not None else []
        if problem_type == REGRESSION and rows not in (None, 1):
            faults.append(f"--problem-type regression: the head has {rows} rows, expected 1. Leave --problem-type out")
        return (), faults, []
    given = wishes.labels
    if given is not None:
        faults = []
        if len(set(given)) != len(given) or not all(given):
            faults.append(f"--labels {', '.join(given)}: expected names, each once. Mend the list")
        if rows is not None and rows != len(given):
            faults.append(f"--labels: {len(given)} labels, and the head has {rows} rows. Give one label for each row")
        return given, faults, []
    if rows is None:
        return (), ["the head does not tell how many labels it knows. Give them with --labels, in their order"], []
    for where, source in (
        (f"{adapter.folder / 'config.json'}", adapter.own_config),
        ("the base's config.json", config),
    ):
        labels = named_labels(source, rows=rows)
        if labels:
            return labels, [], [f"labels from {where}: {', '.join(labels)}. If they are others give --labels"]
    labels = tuple(f"LABEL_{index}" for index in range(rows))
    note = f"WARNING: nobody says what the {rows} rows of the head mean; they are called {labels[0]}, ... Give --labels"
    return labels, [], [note]
