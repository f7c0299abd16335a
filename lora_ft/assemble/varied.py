"""Training rows -> the same rows and variants of them, for tasks whose texts are varied before they are encoded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from lora_ft.data.progress import watched
from lora_ft.data.rows import Origin
from lora_ft.data.shared import once
from lora_ft.errors import InputError, RecipeError
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem, Variation

logger = logging.getLogger(__name__)

BACK_TRANSLATION = "back_translation"
ATTEMPTS = 3
"""How often one way of varying is tried before the next: a second variant of a row may come out as the first."""

Row = Mapping[str, Any]
Translate = Callable[[list[str]], Sequence[str]]


@dataclass(frozen=True)
class Variants:
    """What was made of the training rows. The rows themselves come first, the variants after them, row by row.

    Attributes:
        sources: For each variant the number of the row that it was made of, `(variants,)`, ascending.
        ways: For each variant the operation that made it.
        missing: How many more there would be if no row had come out as it was, or as a variant before.
    """

    sources: tuple[int, ...] = ()
    ways: tuple[str, ...] = ()
    missing: int = 0

    def origins_of(self, origins: Mapping[str, Origin]) -> dict[str, Origin]:
        """Where the rows of each split are, the row of a variant for the variant."""
        own = origins["train"]
        return {**origins, "train": own.take([*range(len(own.number)), *self.sources])}

    def as_json(self) -> dict[str, int]:
        """How many there are of each way, and how many are missing; nothing where no row is varied."""
        if not self.sources and not self.missing:
            return {}
        return {**{way: self.ways.count(way) for way in sorted(set(self.ways))}, "missing": self.missing}

    def lines(self, rows: int) -> list[str]:
        """What to log of them beside so many rows; nothing where no row is varied."""
        counts = self.as_json()
        if not counts:
            return []
        told = ", ".join(f"{way} {count}" for way, count in counts.items() if way != "missing") or "none"
        left = f"; {self.missing} came out unchanged or twice and are left out" if self.missing else ""
        return [f"train: {len(self.sources)} varied rows beside the {rows} of the data ({told}){left}"]


def with_variants(
    rows: datasets.Dataset, *, task: Task, problem: Problem, recipe: Recipe, shared_dir: Path | None = None
) -> tuple[datasets.Dataset, Variants]:
    """The training rows and as many varied copies of each as the recipe asks for.

    What a variant is follows from the run's seed, the number of its row and its own number alone.

    Args:
        rows: The training rows under our column names, labels canonical.
        task: The task; it says how rows are varied.
        problem: What it is about; its augmentation and its seed.
        recipe: For messages, and for modules that lie beside it.
        shared_dir: Where the processes of a run have translations in common, of which one asks; None: it is alone.

    Returns:
        The rows followed by the variants, and what these are; the rows alone where nothing is to be varied.

    Raises:
        RecipeError: The rows do not survive it, or a file or function cannot be used.
    """
    if not problem.augmentation or "variants" not in task.augmentation_fields:
        return rows, Variants()
    try:
        made, variants = _varied(
            rows, task=task, problem=problem, folder=recipe.file.absolute().parent, shared_dir=shared_dir
        )
    except InputError as error:
        raise RecipeError([f"{recipe.file}: {error}"]) from error
    if made:
        more = datasets.Dataset.from_list(made, features=rows.features)
        rows = datasets.concatenate_datasets([rows, more])
    return rows, variants


def _varied(
    rows: datasets.Dataset, *, task: Task, problem: Problem, folder: Path, shared_dir: Path | None
) -> tuple[list[dict[str, Any]], Variants]:
    """The variants of all rows and what they are."""
    columns = task.varied_columns(problem.problem_type)
    if task.varied_texts and not columns:
        known = ", ".join(task.column_sets[problem.problem_type])
        raise InputError(f"augmentation: of rows with {known} every word is learned. Leave the section out")
    ways = dict(task.variations(rows, problem))
    spec = problem.augmentation.get(BACK_TRANSLATION)
    translate = _function(spec, folder) if spec is not None else None
    asked = int(problem.augmentation.get("variants", 1))
    found: list[dict[int, tuple[dict[str, Any], str]]] = []  # of each row: number of the variant -> it and its way
    waiting: list[tuple[int, int, Row]] = []  # row and number of the variants that are to be translated, and the row
    for number, row in enumerate(watched(rows, total=len(rows), description="vary train")):
        found.append({})
        for variant in range(asked):
            rng = np.random.default_rng((problem.seed, number, variant))
            order = [*sorted(ways), *([BACK_TRANSLATION] if translate else [])]
            for way in (order[at] for at in rng.permutation(len(order))):
                if way == BACK_TRANSLATION:
                    waiting.append((number, variant, row))
                    break
                made = _new(row, ways[way], rng, known=[one for one, _ in found[number].values()])
                if made is not None:
                    found[number][variant] = made, way
                    break
    if translate is not None:
        ask = partial(_translations, translate=translate, spec=str(spec), shared_dir=shared_dir)
        _translate(found, waiting, columns=columns, translate=ask)
    made_of = [(number, found[number][variant]) for number in range(len(rows)) for variant in sorted(found[number])]
    variants = Variants(
        sources=tuple(number for number, _ in made_of),
        ways=tuple(way for _, (_, way) in made_of),
        missing=asked * len(rows) - len(made_of),
    )
    return [row for _, (row, _) in made_of], variants


def _new(row: Row, vary: Variation, rng: np.random.Generator, *, known: Sequence[Row]) -> dict[str, Any] | None:
    """A variant unlike its row and all that were made of it before; None where there is none."""
    for _ in range(ATTEMPTS):
        made = vary(row, rng)
        if made != row and made not in known:
            return made
    return None


def _translate(
    found: Sequence[dict[int, tuple[dict[str, Any], str]]],
    waiting: Sequence[tuple[int, int, Row]],
    *,
    columns: Sequence[str],
    translate: Translate,
) -> None:
    """Has the texts of the waiting variants translated, all at once, and puts in what came out new."""
    places = [(at, name) for at, (_, _, row) in enumerate(waiting) for name in columns if (row.get(name) or "").strip()]
    answered = translate([waiting[at][2][name] for at, name in places])
    written: dict[int, dict[str, Any]] = {}
    for (at, name), text in zip(places, answered, strict=True):
        if text.strip():
            written.setdefault(at, dict(waiting[at][2]))[name] = text
    for at, made in written.items():
        number, variant, row = waiting[at]
        if made != row and made not in [one for one, _ in found[number].values()]:
            found[number][variant] = made, BACK_TRANSLATION


def _translations(texts: list[str], *, translate: Translate, spec: str, shared_dir: Path | None) -> list[str]:
    """What a translator says of texts, of which one process of a machine asks."""
    if not texts:
        return []
    if shared_dir is None:
        return _asked(texts, translate=translate, spec=spec)
    key = hashlib.sha256(json.dumps([spec, texts]).encode()).hexdigest()
    return once(shared_dir, key, partial(_asked, texts, translate=translate, spec=spec))


def _asked(texts: list[str], *, translate: Translate, spec: str) -> list[str]:
    """The same by asking it, and looking at what it says."""
    answered = translate(texts)
    where = f"augmentation.{BACK_TRANSLATION} = {spec}"
    if isinstance(answered, str) or not isinstance(answered, Sequence) or len(answered) != len(texts):
        told = f"{len(answered)} values" if isinstance(answered, Sequence) else f"a {type(answered).__name__}"
        raise InputError(
            f"{where}: it was given {len(texts)} texts and returned {told}. Expected a list of as many texts"
        )
    wrong = next((one for one in answered if not isinstance(one, str)), None)
    if wrong is not None:
        raise InputError(f"{where}: it returned {wrong!r} among its texts. Expected texts alone")
    return list(answered)


def _function(spec: str, folder: Path) -> Translate:
    """A function by name, of a module on the Python path or beside the recipe."""
    module_name, _, name = spec.partition(":")
    where = f"augmentation.{BACK_TRANSLATION} = {spec}"
    try:
        with _importable(module_name.partition(".")[0], folder):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{where}: the module cannot be imported: {error}. Mend it, or name another one") from error
    if name not in vars(module):
        raise InputError(f"{where}: the module {module_name} has no {name}. Expected a function from texts to texts")
    function: Translate = vars(module)[name]
    if not callable(function):
        raise InputError(f"{where}: {name} is no function. Expected a function from texts to texts")
    return function


@contextmanager
def _importable(top: str, folder: Path) -> Iterator[None]:
    """Lets a module beside the recipe be imported where the Python path has none of that name."""
    beside = importlib.machinery.PathFinder.find_spec(top) is None
    if beside:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if beside:
            sys.path.remove(str(folder))
