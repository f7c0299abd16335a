"""What is wrong with the texts of a recipe and with what is to be learned of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets

from lora_ft.assemble.examination import Seen, SplitReport, Watch
from lora_ft.assemble.prepare import base_config, label_column
from lora_ft.data.contents import text_inputs
from lora_ft.data.doctor.boilerplate import BoilerplateCheck
from lora_ft.data.doctor.contexts import ContextCheck
from lora_ft.data.doctor.duplicates import DuplicateCheck
from lora_ft.data.doctor.entities import EntityCheck
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.labels import LabelCheck
from lora_ft.data.doctor.languages import LanguageCheck
from lora_ft.data.doctor.lengths import LengthCheck, Spread, Tokens
from lora_ft.data.doctor.numbers import NumberCheck
from lora_ft.data.doctor.scripts import ScriptCheck
from lora_ft.data.doctor.stream import JOINT, Batch, Check, each_batch, text_columns, text_of
from lora_ft.data.doctor.targets import target_reader
from lora_ft.data.doctor.texts import TextCheck
from lora_ft.data.labels import REGRESSION, SINGLE
from lora_ft.data.rows import Splits
from lora_ft.errors import DataError, InputError, RecipeError
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import resolve_base
from lora_ft.recipe.schema import Column, Recipe
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.text import positions_of

CONSTANT = "constant-texts"


def examine_texts(recipe: Recipe, task: Task, splits: Splits, *, problem_type: str, watch: Watch) -> Seen:
    """Everything about texts and their labels, in one pass over the rows, and a second one for boilerplate."""
    if not text_columns(splits["train"], task.columns):
        raise DataError(f"data check: {task.name} has no column of texts, images or sounds in these rows")
    names = recipe.dataset.label_names or splits.label_names
    target_of = target_reader(splits["train"], task.columns, problem_type=problem_type, names=names)
    tokens, given = _tokens(recipe, task, splits, problem_type=problem_type)
    rows = sum(map(len, splits.values()))

    def batches(what: str) -> Iterator[Batch]:
        with watch(rows, what) as advance:
            yield from each_batch(splits, task.columns, target_of=target_of, advance=advance)

    lengths = LengthCheck(tokens, given=given)
    labels = LabelCheck(
        known=recipe.dataset.label_names if label_column(task) else None, one_each=problem_type == SINGLE,
        weighs=task.weighs_classes and not recipe.makes_up_for_rare_classes,
    )  # fmt: skip
    checks: list[Check] = [labels, lengths, *_checks(recipe, task, splits, problem_type=problem_type, batches=batches)]
    for batch in batches("examine"):
        for check in checks:
            check.add(batch)
    findings = [finding for check in checks for finding in check.findings()]
    if CONSTANT not in recipe.checks_off:
        findings += _constant(splits, task, lengths)
    reports = {}
    for split, table in splits.items():
        characters, counted, _ = lengths.of(split)
        longer = int((counted > tokens.max_length).sum())
        counts = dict(labels.counts[split].most_common())
        reports[split] = SplitReport(len(table), 0, counts, Spread.of(characters), Spread.of(counted), longer)
    return reports, findings, (tokens.max_length, lengths.suggested())


def _checks(
    recipe: Recipe,
    task: Task,
    splits: Splits,
    *,
    problem_type: str,
    batches: Callable[[str], Iterator[Batch]],
) -> list[Check]:
    """What is asked beside labels and lengths, which are always counted; what the recipe turns off is not made."""
    off, kinds, there = recipe.checks_off, {one.kind: one for one in task.columns}, splits["train"].column_names
    near = not off.issuperset(DuplicateCheck.NEAR)
    duplicates = DuplicateCheck(
        (lambda split, positions: inputs_of(splits[split], task.columns, positions)) if near else None
    )
    checks: list[Check] = [TextCheck(without=off)]
    if not off.issuperset(DuplicateCheck.NAMES) or not off.issuperset(BoilerplateCheck.NAMES):
        checks.append(duplicates)
    if not off.issuperset(ScriptCheck.NAMES):
        checks.append(ScriptCheck())
    if not off.issuperset(LanguageCheck.NAMES):
        checks.append(LanguageCheck({split: len(table) for split, table in splits.items()}))
    if not off.issuperset(BoilerplateCheck.NAMES):
        checks.append(BoilerplateCheck(lambda: batches("boilerplate"), duplicates.distinct))
    if problem_type == REGRESSION and label_column(task) and not off.issuperset(NumberCheck.NAMES):
        checks.append(NumberCheck("label"))
    if "answers" in kinds and not off.issuperset(ContextCheck.NAMES):
        checks.append(ContextCheck("context"))
    tagged = next((kind for kind in ("labels", "spans") if kind in kinds and kinds[kind].name in there), None)
    if tagged is not None and not off.issuperset(EntityCheck.NAMES):
        checks.append(EntityCheck(tokens=tagged == "labels"))
    return checks


def _constant(splits: Splits, task: Task, lengths: LengthCheck) -> list[Finding]:
    """A column of texts that says the same in every row; only asked where all rows are of one length."""
    found = []
    for split, table in splits.items():
        for column in text_columns(table, task.columns):
            read = {text_of(value) for value in table[column.name][:2]}
            if len(table) < 3 or len(read) > 1 or len(set(lengths.lengths[split][0])) > len(table) // 2:
                continue
            if len({text_of(value) for value in table[column.name][:]}) == 1:
                told = f"have the same text in the column {column.name!r}"
                remedy = f"Check `dataset.columns.{column.name}`: a column that never changes says nothing"
                found.append(Finding("constant-texts", "error", split, len(table), len(table), told, remedy))
    return found


def _tokens(recipe: Recipe, task: Task, splits: Splits, *, problem_type: str) -> tuple[Tokens, tuple[str, ...]]:
    """How the recipe's tokenizer counts, and the columns that it counts."""
    base = resolve_base(
        recipe.model.pretrained_model_name_or_path, revision=recipe.model.revision, offline=recipe.offline
    )
    config, train = base_config(base), splits["train"]
    processor = load_processor(base, classes=task.processor_classes, trust_remote_code=recipe.model.trust_remote_code)
    try:
        settings = task.settings(recipe.processor, base_config=config, processor=processor, problem_type=problem_type)
    except InputError as error:
        raise RecipeError([f"{recipe.file}: {error}"]) from error
    inputs, texts = text_inputs(train, task.columns), text_columns(train, task.columns)
    learned_with = task.peft_task_type == "CAUSAL_LM"  # what is given and what follows are one sequence
    given = tuple(column.name for column in (texts if learned_with or not inputs else inputs))
    stream = not inputs and all(column.kind == "text" for column in texts)
    unknown = processor.unk_token_id if processor.unk_token_id not in (None, processor.eos_token_id) else None

    def encode(*parts: Sequence[str]) -> Any:
        return processor(*map(list, parts), truncation=False, padding=False, verbose=False)["input_ids"]

    def count(parts: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
        if len(parts) > 2:  # one prompt and several answers to it
            first, *others = (encode(part) for part in parts)
            return [len(a) + max(map(len, rest)) for a, *rest in zip(first, *others, strict=True)], [0] * len(first)
        rows = encode(*parts)
        return [len(ids) for ids in rows], [ids.count(unknown) for ids in rows]

    limit = min(positions_of(config), int(processor.model_max_length))
    cuts = "stride" not in task.processor_fields and not stream
    return Tokens(count, max_length=int(settings["max_length"]), limit=limit, cuts=cuts), given


def inputs_of(table: datasets.Dataset, columns: Sequence[Column], positions: Sequence[int]) -> list[str]:
    """The inputs of some rows, as `Batch.inputs` has them."""
    chosen = text_inputs(table, columns) or text_columns(table, columns)
    rows = table.select_columns([column.name for column in chosen])[list(positions)]
    return [JOINT.join(map(text_of, values)) for values in zip(*(rows[one.name] for one in chosen), strict=True)]
