"""What predict, evaluate and verify do where they are given a folder of adapters instead of one."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.cli.environment import open_options, quiet_libraries, task_facts
from lora_ft.cli.inputs import rows_of_lines, rows_of_words
from lora_ft.cli.output import print_table, progress_bar, write_lines
from lora_ft.errors import AdapterError, AdapterRefused, InputError, closest

if TYPE_CHECKING:
    from lora_ft.adapters.manifest import Manifest
    from lora_ft.adapters.pool_folder import PoolFolder
    from lora_ft.assemble.addressed import AddressedRow
    from lora_ft.assemble.router import Route
    from lora_ft.evaluate.compare_many import OwnRows, PoolComparison
    from lora_ft.tasks.base import Task

AUTO = "auto"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(value: str) -> int:
    """A number of bytes as a person writes it: 2GB, 500MB, 1.5GiB.

    Raises:
        InputError: It is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", value.strip())
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found and found[2].upper() in UNITS else 0
    if size == 0:
        raise InputError(f"--max-bytes {value}: no size. Expected a number of bytes, such as 2GB, 500MB or 1.5GiB")
    return size


@dataclass(frozen=True)
class WholePool:
    """Adapters below a folder, the files of all of which are whole.

    Attributes:
        folder: Names and folders.
        manifests: Name -> manifest.
    """

    folder: PoolFolder
    manifests: Mapping[str, Manifest]


@dataclass(frozen=True)
class PoolQuestion:
    """What `predict` is asked of a pool.

    Attributes:
        words: Of the command line.
        source: `--input`.
        column: `--adapter-column`.
        adapter: `--adapter`.
        max_adapters: `--max-adapters`.
        max_bytes: `--max-bytes`.
        output: `--output`.
        batch_size: `--batch-size`.
    """

    words: tuple[str, ...]
    source: str | None
    column: str | None
    adapter: str | None
    max_adapters: int | None
    max_bytes: int | None
    output: Path | None
    batch_size: int

    @property
    def default(self) -> str | None:
        """The adapter of rows that do not say; None: there is none, or the router chooses."""
        return None if self.adapter == AUTO else self.adapter


def refuse_for_one(verb: str, adapter: Path, options: Mapping[str, Any]) -> None:
    """Refuses options of a folder of adapters where one adapter is given.

    Args:
        verb: The verb.
        adapter: What it was given.
        options: Option -> value; those that are not None were given.

    Raises:
        InputError: One was given.
    """
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{verb}: {given[0]}: {adapter} is one adapter, which answers every row. Leave {given[0]} out, or give the "
            "folder above several adapters"
        )


def predict_pool(root: Path, asked: PoolQuestion, where: dict[str, Any], *, debug: bool) -> None:
    """Answers each row by the adapter that it names; what can be refused without torch is refused before it is there.

    Args:
        root: The folder.
        asked: What to answer, and how.
        where: The options that open an adapter.
        debug: Whether libraries may speak.
    """
    quiet_libraries(debug, offline=where["offline"])
    from lora_ft.tasks.base import load_task

    whole = _whole_pool(root, quantization=where["quantization"])
    _check_question(asked, whole)
    task = load_task(whole.folder.first.task)
    silent = _concerned(asked, whole, task)
    rows: Iterable[AddressedRow] = ()
    total: int | None = None
    names = [asked.default] if asked.default is not None else []
    if asked.source not in (None, "-"):
        rows, total, names = _rows_of_file(asked, whole, task, silent=silent)
    options = open_options(where, debug=debug)
    from lora_ft.adapters.pool_store import PoolLimits
    from lora_ft.assemble.pooled import open_pool
    from lora_ft.assemble.router import make_router
    from lora_ft.serve.predict_many import predict_many, prove_all

    if asked.source in (None, "-"):
        rows, total = _other_rows(asked, whole, task, silent=silent)
    pooled = open_pool(whole.folder, options, limits=PoolLimits(asked.max_adapters, asked.max_bytes))
    with progress_bar(len(names), "verify") as advance:
        prove_all(pooled, names, advance=advance)
    router = make_router(pooled) if asked.adapter == AUTO else None
    window = 1 if asked.source == "-" else 8  # a stream is answered batch by batch as it comes
    with progress_bar(total, "predict", hidden=asked.output is None and sys.stdout.isatty()) as advance:
        answers = predict_many(
            pooled, rows, default=asked.default, router=router, batch_size=asked.batch_size, window=window,
            advance=advance,
        )  # fmt: skip
        write_lines(answers, asked.output)


def evaluate_pool(
    root: Path,
    where: dict[str, Any],
    *,
    data: Path | None,
    column: str | None,
    split: str | None,
    limits: Mapping[str, int | None],
    predictions: Path | None,
    as_json: bool,
    batch_size: int,
    debug: bool,
) -> None:
    """Measures each adapter of a folder on its own rows, and the router on all of them."""
    if (data is None) != (column is None):
        raise InputError(
            f"evaluate: {root} is a folder of adapters: rows of a file say whose they are. Give both --data FILE and "
            "--adapter-column COLUMN, or neither (then each adapter is measured on its recipe's rows)"
        )
    quiet_libraries(debug, offline=where["offline"])
    from lora_ft.assemble.addressed import check_addresses, read_addresses
    from lora_ft.assemble.recorded import recorded_recipe

    whole = _whole_pool(root, quantization=where["quantization"])
    folders, facts, recipes, addresses = whole.folder.folders, task_facts(), {}, None
    if data is not None and column is not None:
        addresses = read_addresses(data, column)
        check_addresses(addresses, folders, default=False, what_to_do="Write one for each row")
    else:
        recipes = {name: recorded_recipe(folder, tasks=facts) for name, folder in folders.items()}
    options = open_options(where, debug=debug)
    from lora_ft import screen
    from lora_ft.adapters.pool_store import PoolLimits
    from lora_ft.assemble.pooled import open_pool
    from lora_ft.assemble.router import make_router
    from lora_ft.evaluate.compare_many import compare_many, rows_of_addresses, rows_of_recipes
    from lora_ft.metrics.intervals import RESAMPLES
    from lora_ft.serve.predict_many import prove_all

    pooled = open_pool(whole.folder, options, limits=PoolLimits(**limits))
    names = [name for name in folders if addresses is None or name in set(addresses.names)]
    with progress_bar(len(names), "verify") as advance:
        prove_all(pooled, names, advance=advance)
    if addresses is not None:
        rows = rows_of_addresses(pooled, whole.manifests, folders, addresses)
    else:
        rows = rows_of_recipes(pooled, whole.manifests, recipes, split=split)
    router = make_router(pooled) if any(one.centroid for one in whole.manifests.values()) else None
    draws = RESAMPLES * len(rows)
    with progress_bar(None, "evaluate") as advance, progress_bar(draws, "intervals") as advance_draw:
        comparison = compare_many(
            pooled, rows, whole.manifests, router=router, batch_size=batch_size, advance=advance,
            advance_draw=advance_draw,
        )  # fmt: skip
    if predictions is not None:
        write_lines(_lines(pooled.task, rows, comparison), predictions)
    if as_json:
        click.echo(json.dumps({"folder": str(root), **comparison.to_mapping()}, indent=2, ensure_ascii=False))
    else:
        print_table(screen.pool_table(comparison, root))


def verify_pool(root: Path, where: dict[str, Any], *, debug: bool) -> None:
    """Proves every adapter of a folder on one loaded base, and says one line of each.

    Raises:
        AdapterRefused: One or more are refused.
    """
    from lora_ft.adapters.pool_folder import name_of, read_pool

    start = time.monotonic()
    whole, damaged = _verified_files(root)
    lines = {folder: f"refused: {reason}" for folder, reason in damaged.items()}
    if whole:
        folder = read_pool(root, mixed_quantization=where["quantization"] != "as-trained", without=damaged)
        options = open_options(where, debug=debug)
        from lora_ft.adapters.pool_store import PoolLimits
        from lora_ft.assemble.pooled import open_pool

        pooled = open_pool(folder, options, limits=PoolLimits(max_adapters=1))
        with progress_bar(len(folder.folders), "verify") as advance:
            for name, place in folder.folders.items():
                try:
                    pooled.member(name)
                    lines[place] = "verified"
                except AdapterError as error:
                    lines[place] = f"refused: {error}"
                advance(1)
    for place in sorted(lines):
        click.echo(f"{name_of(place, root=root)}: {lines[place]}")
    refused = [name_of(place, root=root) for place in sorted(lines) if lines[place] != "verified"]
    click.echo(f"{len(lines) - len(refused)} of {len(lines)} adapters verified in {time.monotonic() - start:.1f} s")
    if refused:
        raise AdapterRefused(f"{root}: refused: {', '.join(refused)}")


def _verified_files(root: Path) -> tuple[dict[Path, Manifest], dict[Path, str]]:
    """The manifests of all whole adapters below a folder, and why the others are not."""
    from lora_ft.adapters.verify import find_adapters, verify_files

    whole: dict[Path, Manifest] = {}
    damaged: dict[Path, str] = {}
    for folder in find_adapters(root):
        try:
            whole[folder] = verify_files(folder)
        except AdapterError as error:
            damaged[folder] = str(error)
    return whole, damaged


def _whole_pool(root: Path, *, quantization: str) -> WholePool:
    """The adapters below a folder; nothing is answered where one of them is damaged.

    Raises:
        AdapterRefused: Lists all damaged ones.
        InputError: They cannot be one pool.
    """
    from lora_ft.adapters.pool_folder import read_pool

    whole, damaged = _verified_files(root)
    if damaged:
        count = len(damaged)
        raise AdapterRefused(
            f"{root}: {count} of {len(whole) + count} adapters {'is' if count == 1 else 'are'} damaged, so no row is "
            "answered. Mend them, or move them out of the folder:\n" + "\n".join(damaged.values())
        )
    folder = read_pool(root, mixed_quantization=quantization != "as-trained")
    return WholePool(folder, {name: whole[place] for name, place in folder.folders.items()})


def _check_question(asked: PoolQuestion, whole: WholePool) -> None:
    """Refuses what cannot be meant, and an unknown `--adapter`."""
    names = list(whole.folder.folders)
    if asked.column is None and asked.adapter is None:
        raise InputError(
            f"predict: {whole.folder.root} holds {len(names)} adapters, and nothing says whose the rows are. Give "
            "--adapter-column COLUMN, or --adapter NAME (auto: the nearest)"
        )
    if asked.column is not None and asked.words:
        raise InputError("predict: --adapter-column: words have no columns. Give --adapter NAME, or --input FILE")
    if asked.adapter == AUTO and AUTO in names:
        raise InputError(f"predict: --adapter {AUTO}: an adapter of that name is in the folder. Rename it")
    if asked.default is not None and asked.default not in names:
        raise InputError(
            f"predict: --adapter {asked.default}: there is no such adapter.{closest(asked.default, names)} "
            f"There are: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        )


def _concerned(asked: PoolQuestion, whole: WholePool, task: Task) -> list[str]:
    """The adapters that rows may go to which do not say; they must read a row alike."""
    from lora_ft.assemble.addressed import check_one_way, choosable, ways_to_read

    if asked.default is not None:
        return [asked.default]
    if asked.adapter is None:
        return []
    known = choosable(whole.manifests)
    check_one_way(ways_to_read(known, whole.folder.folders, whole.manifests, task=task, targets=False))
    others = [name for name in whole.manifests if name not in known]
    if others:
        click.echo(f"--adapter auto: without a centroid, never chosen: {', '.join(others)}", err=True)
    return known


def _rows_of_file(
    asked: PoolQuestion, whole: WholePool, task: Task, *, silent: Sequence[str]
) -> tuple[Iterable[AddressedRow], int, list[str]]:
    """The rows of a file, their number, and the adapters that they name; read without torch."""
    from lora_ft.assemble.addressed import (
        addressed_rows,
        check_addresses,
        load_each_way,
        read_addresses,
        ways_to_read,
    )

    file, folders, named = Path(asked.source or ""), whole.folder.folders, list[str | None]()
    if asked.column is not None:
        addresses = read_addresses(file, asked.column)
        what_to_do = "Write one, or give --adapter NAME for such rows (auto: the nearest)"
        check_addresses(addresses, folders, default=bool(silent), what_to_do=what_to_do)
        named = list(addresses.names)
    wanted = set(named) | ({asked.default} if asked.default is not None and None in (named or [None]) else set())
    used = [name for name in folders if name in wanted]
    undecided = silent[0] if silent else None
    read = used if undecided in used or undecided is None else [*used, undecided]
    ways = ways_to_read(read, folders, whole.manifests, task=task, targets=False)
    tables = load_each_way(file, ways, whole.manifests, task=task, targets=False)
    count = len(next(iter(tables.values()))["rows"])
    return addressed_rows(tables, named or [None] * count, undecided=undecided), count, used


def _other_rows(
    asked: PoolQuestion, whole: WholePool, task: Task, *, silent: Sequence[str]
) -> tuple[Iterable[AddressedRow], int | None]:
    """The rows of words or of standard input, and their number if it is known."""
    from lora_ft.serve.predict_many import addressed

    concerned = silent if asked.column is None else list(whole.manifests)
    columns = [whole.manifests[name].run.get("columns") or [task.argument] for name in concerned]
    needed = [name for name in columns[0] if all(name in others for others in columns)]
    if asked.words:
        listed = rows_of_words(asked.words, task=task, needed=needed)
        return addressed(listed, column=None), len(listed)
    lines = rows_of_lines(sys.stdin, task=task, needed=needed, objects=asked.column is not None)
    return addressed(lines, column=asked.column), None


def _lines(task: Task, rows: Mapping[str, OwnRows], comparison: PoolComparison) -> Iterator[dict[str, Any]]:
    """Each row with its reference, its adapter, the one that the router would choose, and its prediction."""
    from lora_ft.cli.inputs import with_references

    for name, own in rows.items():
        result = comparison.domains[name]
        routes: Sequence[Route | None] = result.routes or [None] * len(own.table)
        for row, route, prediction in zip(own.table, routes, result.predictions, strict=True):
            nearest = {} if route is None else {"nearest": route.adapter, "nearest_score": route.score}
            yield {**with_references(task, row), "adapter": name, **nearest, **prediction}
