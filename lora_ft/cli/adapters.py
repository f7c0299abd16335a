"""The verbs around one adapter: evaluate, predict, verify, show, list."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.cli.environment import open_options, opening, refuse_damaged, task_facts
from lora_ft.cli.hints import hinted
from lora_ft.cli.inputs import rows_of_lines, rows_of_words, with_references
from lora_ft.cli.output import print_table, progress_bar, write_lines
from lora_ft.cli.pools import PoolQuestion, bytes_of, evaluate_pool, predict_pool, refuse_for_one, verify_pool
from lora_ft.cli.refusals import refuse_place, refuse_question, refuse_sources, refuse_split
from lora_ft.errors import InputError, LoraFtError

if TYPE_CHECKING:
    from lora_ft.assemble.saved import SavedAdapter


def pooling(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of verbs that answer rows by a folder of adapters."""
    options = (
        click.option("--adapter-column", "column", help="Of a folder of adapters: the column that names each row's."),
        click.option("--max-adapters", type=click.IntRange(min=1), help="How many of them may be in memory at a time."),
        click.option("--max-bytes", type=bytes_of, help="How much of them may be in memory at a time: 2GB."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Rows with labels; else the recipe's test split.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Which split of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Also write each row's prediction (JSON lines).")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@pooling
@opening
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    adapter: Path,
    data: Path | None,
    split: str | None,
    as_json: bool,
    predictions: Path | None,
    batch_size: int,
    column: str | None,
    max_adapters: int | None,
    max_bytes: int | None,
    **where: Any,
) -> None:
    """Measure ADAPTER and its base side by side, with 95 % intervals; or all adapters below a folder."""
    refuse_sources(data, split)
    refuse_place("evaluate: --predictions", predictions)
    from lora_ft.adapters.pool_folder import is_pool

    if is_pool(adapter):
        limits = {"max_adapters": max_adapters, "max_bytes": max_bytes}
        evaluate_pool(
            adapter, where, data=data, column=column, split=split, limits=limits, predictions=predictions,
            as_json=as_json, batch_size=batch_size, debug=context.obj["debug"],
        )  # fmt: skip
        return
    given = {"--adapter-column": column, "--max-adapters": max_adapters, "--max-bytes": max_bytes}
    refuse_for_one("evaluate", adapter, given)
    refuse_damaged(adapter)
    refuse_split(adapter, split)
    options = open_options(where, debug=context.obj["debug"])
    from lora_ft import screen
    from lora_ft.assemble.recorded import recorded_columns, recorded_recipe
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.evaluate.compare import compare, rows_of_file, rows_of_recipe
    from lora_ft.metrics.intervals import RESAMPLES

    opened = open_adapter(adapter, options)
    if data is None:
        name, rows = rows_of_recipe(opened, recorded_recipe(opened.folder, tasks=task_facts()), split)
    else:
        name, rows = str(data), rows_of_file(opened, data, recorded_columns(opened.folder))
    with progress_bar(None, "evaluate") as advance, progress_bar(2 * RESAMPLES, "intervals") as advance_draw:
        comparison = compare(
            opened, rows, split=name, batch_size=batch_size, advance=advance, advance_draw=advance_draw
        )
    if predictions is not None:
        lines = (
            {**with_references(opened.task, row), **answer}
            for row, answer in zip(rows, comparison.predictions, strict=True)
        )
        write_lines(lines, predictions)
    if as_json:
        click.echo(json.dumps({"adapter_folder": str(opened.folder), **comparison.to_mapping()}, indent=2))
    else:
        print_table(screen.comparison_table(comparison, opened.folder.parent.name))


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1)
@click.option(
    "--input",
    "source",
    help="A file (.txt .csv .tsv .jsonl .json .parquet), or - for one text a line (else: one JSON object a line).",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON lines here instead of printing them.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="Also draw the predictions into copies of the images."
)
@click.option("--stream", is_flag=True, help="Print generated text as it comes.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--adapter", "name", help="Of a folder of adapters: whose rows are that do not say; auto: the nearest's.")
@pooling
@opening
@click.pass_context
def predict(
    context: click.Context,
    /,
    adapter: Path,
    inputs: tuple[str, ...],
    source: str | None,
    output: Path | None,
    pictures: Path | None,
    stream: bool,
    batch_size: int,
    name: str | None,
    column: str | None,
    max_adapters: int | None,
    max_bytes: int | None,
    **where: Any,
) -> None:
    """Answer INPUTS (texts; files or folders of images or sounds), a file or standard input: one JSON object a row."""
    if bool(inputs) == bool(source):
        raise InputError("predict: give either inputs or --input (a file, or - for standard input)")
    if stream and (output is not None or pictures is not None):
        raise InputError("predict: --stream prints text as it comes. Leave out --output and --pictures, or --stream")
    if source not in (None, "-") and not Path(source or "").is_file():
        raise InputError(f"predict: --input {source}: there is no such file")
    refuse_place("predict: --output", output)
    from lora_ft.adapters.pool_folder import is_pool

    if is_pool(adapter):
        if stream or pictures is not None:
            raise InputError(f"predict: {adapter} holds several adapters. Give one of them for --stream and --pictures")
        asked = PoolQuestion(
            words=inputs, source=source, column=column, adapter=name, max_adapters=max_adapters, max_bytes=max_bytes,
            output=output, batch_size=batch_size,
        )  # fmt: skip
        predict_pool(adapter, asked, where, debug=context.obj["debug"])
        return
    given = {
        "--adapter-column": column, "--adapter": name, "--max-adapters": max_adapters, "--max-bytes": max_bytes,
    }  # fmt: skip
    refuse_for_one("predict", adapter, given)
    refuse_damaged(adapter)
    refuse_question(adapter, inputs, stream=stream, pictures=pictures)
    options = open_options(where, debug=context.obj["debug"])
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.serve.predict import drawn, streamed
    from lora_ft.serve.predict import predict as answer

    opened = open_adapter(adapter, options)
    rows, total = _rows_to_predict(opened, inputs, source)
    rows = hinted(rows, opened.task, opened.problem, words=bool(inputs))
    window = 1 if source == "-" else 8  # a stream is answered batch by batch as it comes
    if stream:
        for piece in streamed(opened, rows):
            click.echo(piece, nl=False)
        return
    with progress_bar(total, "predict", hidden=output is None and sys.stdout.isatty()) as advance:
        how: dict[str, Any] = {"batch_size": batch_size, "window": window, "advance": advance}
        answers = answer(opened, rows, **how) if pictures is None else drawn(opened, rows, pictures, **how)
        write_lines(answers, output)


def _rows_to_predict(
    opened: SavedAdapter, words: tuple[str, ...], source: str | None
) -> tuple[Iterable[Mapping[str, Any]], int | None]:
    """The rows that the command line names, and their number if it is known."""
    from lora_ft.assemble.recorded import recorded_columns
    from lora_ft.data.sources import load_file

    task, needed = opened.task, opened.manifest.run.get("columns", [])
    if words:
        rows = rows_of_words(words, task=task, needed=needed)
        return rows, len(rows)
    if source == "-":
        return rows_of_lines(sys.stdin, task=task, needed=needed or [task.argument]), None
    recorded = recorded_columns(opened.folder)
    table = load_file(
        Path(source or ""), columns=recorded.columns, wanted=task.inputs(), column_sets=task.column_sets,
        label_delimiter=recorded.label_delimiter, sample_by=recorded.sample_by, media_dir=recorded.media_dir,
    )  # fmt: skip
    return table, len(table)


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@opening
@click.pass_context
def verify(context: click.Context, /, adapter: Path, **where: Any) -> None:
    """Prove that ADAPTER is whole, belongs to its base, and answers as it did; or all adapters below a folder."""
    from lora_ft.adapters.pool_folder import is_pool

    if is_pool(adapter):
        verify_pool(adapter, where, debug=context.obj["debug"])
        return
    refuse_damaged(adapter)
    options = open_options(where, debug=context.obj["debug"])
    from lora_ft.assemble.saved import open_adapter

    opened = open_adapter(adapter, options)
    manifest = opened.manifest
    click.echo(f"{opened.folder}: verified")
    click.echo(f"  files   {len(manifest.files)} with the recorded size and checksum")
    when = "when it was adopted" if "adopted" in manifest.run else "in training"
    click.echo(f"  base    {manifest.base.name}: weights, config and tokenizer as {when}")
    click.echo(f"  tensors {len(manifest.tensors)}, all loaded bit by bit")
    click.echo(f"  probe   {len(manifest.probe.logits)} rows answered as recorded")


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def show(adapter: Path, as_json: bool) -> None:
    """Say what ADAPTER is: task, labels, base, size, metrics, versions."""
    from lora_ft import screen
    from lora_ft.adapters.verify import resolve_adapter, verify_files

    folder = resolve_adapter(adapter)
    manifest = verify_files(folder)
    if as_json:
        click.echo((folder / "manifest.json").read_text(encoding="utf-8"))
    else:
        print_table(screen.manifest_table(manifest, folder))


@click.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_adapters(folder: Path, as_json: bool) -> None:
    """List the adapters below FOLDER."""
    from lora_ft import screen
    from lora_ft.adapters.manifest import Manifest
    from lora_ft.adapters.verify import find_adapters, read_manifest

    found: list[tuple[Path, Manifest | str]] = []
    for adapter in find_adapters(folder):
        try:
            found.append((adapter, read_manifest(adapter)))
        except LoraFtError as error:
            found.append((adapter, str(error)))
    if not found:
        raise InputError(f"{folder}: there is no adapter below this folder (a folder with a manifest.json)")
    if as_json:
        click.echo(json.dumps(screen.listed(found), indent=2, ensure_ascii=False))
    else:
        print_table(screen.adapters_table(found))
