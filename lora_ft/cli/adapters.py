"""The verbs around one adapter: evaluate, predict, verify, show, list."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.cli.environment import open_options, opening, refuse_damaged, task_facts
from lora_ft.cli.output import open_console, progress_bar, write_lines
from lora_ft.errors import InputError, LoraFtError

if TYPE_CHECKING:
    from lora_ft.assemble.saved import SavedAdapter


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Rows with labels; else the recipe's test split.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Which split of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Also write each row's prediction (JSON lines).")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
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
    **where: Any,
) -> None:
    """Measure ADAPTER and its base side by side, with 95 % intervals."""
    refuse_damaged(adapter)
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
        from lora_ft.serve.predict import shown

        inputs = {column.name for column in opened.task.inputs()}
        targets = {
            column.name: "reference" if column.kind == "label" else f"reference_{column.name}"
            for column in opened.task.columns
            if column.target
        }
        lines = (
            {
                **{
                    targets.get(key, key): shown(value) for key, value in row.items() if key in inputs or key in targets
                },
                **answer,
            }
            for row, answer in zip(rows, comparison.predictions, strict=True)
        )
        write_lines(lines, predictions)
    if as_json:
        click.echo(json.dumps({"adapter_folder": str(opened.folder), **comparison.to_mapping()}, indent=2))
    else:
        open_console().print(screen.comparison_table(comparison, opened.folder.parent.name))


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
    **where: Any,
) -> None:
    """Answer INPUTS (texts; files or folders of images or sounds), a file or standard input: one JSON object a row."""
    if bool(inputs) == bool(source):
        raise InputError("predict: give either inputs or --input (a file, or - for standard input)")
    if stream and (output is not None or pictures is not None):
        raise InputError("predict: --stream prints text as it comes. Leave out --output and --pictures, or --stream")
    if source not in (None, "-") and not Path(source or "").is_file():
        raise InputError(f"predict: --input {source}: there is no such file")
    refuse_damaged(adapter)
    options = open_options(where, debug=context.obj["debug"])
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.serve.predict import drawn, streamed
    from lora_ft.serve.predict import predict as answer

    opened = open_adapter(adapter, options)
    rows, total = _rows_to_predict(opened, inputs, source)
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
    from lora_ft.serve.predict import argument_rows, is_file, json_rows, text_rows

    task, needed = opened.task, opened.manifest.run.get("columns", [])
    alone = next((column for column in task.inputs() if column.name == task.argument), None)
    if words:
        if alone is None or (len(needed) > 1 and alone.name in needed):
            raise InputError(
                f"predict: this adapter answers rows of {' and '.join(needed)}, not one input alone. Give --input FILE "
                "with these columns, or --input - with a JSON object a line"
            )
        if alone.kind == "text" and len(words) == 1 and is_file(Path(words[0])):
            raise InputError(f"predict: {words[0]} is a file, not a text. To answer its rows: --input {words[0]}")
        rows = list(argument_rows(words, alone))
        return rows, len(rows)
    if source == "-":
        if alone is not None and alone.kind == "text" and set(needed) <= {alone.name}:
            return text_rows(sys.stdin, column=alone.name), None
        return json_rows(sys.stdin, columns=task.inputs(), needed=needed or [task.argument]), None
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
    """Prove that ADAPTER is whole, belongs to its base, and answers as it did."""
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
    click.echo(f"  probe   {len(manifest.probe.logits)} rows answered as after training")


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
        open_console().print(screen.manifest_table(manifest, folder))


@click.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def list_adapters(folder: Path) -> None:
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
    open_console().print(screen.adapters_table(found))
